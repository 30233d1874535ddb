//! Stacks that are large enough for the deepest values that clients send (`isopod_schema::json::depth`). Only what is touched of one
//! takes memory, and that is given back.

use isopod_schema::json::depth;
use isopod_sys::stack;
use std::cell::Cell;
use std::io;

/// Runs a program on a stack of its own: that of the first thread is as large as somebody has set it.
pub fn run<T: Send + 'static>(program: fn() -> T) -> io::Result<T> {
    depth::allow_deepest();
    let thread = std::thread::Builder::new().name("main".into()).stack_size(depth::STACK).spawn(program)?;
    thread.join().map_err(|_| io::Error::other("the program has panicked"))
}

/// The threads of a runtime.
pub fn of(runtime: &mut tokio::runtime::Builder) -> &mut tokio::runtime::Builder {
    runtime.thread_stack_size(depth::STACK).on_thread_park(give_back)
}

thread_local! {
    /// What deep values this thread has given back its stack after.
    static AFTER: Cell<usize> = const { Cell::new(0) };
}

/// Before a thread waits: it may have walked what was deep since it last did.
fn give_back() {
    let met = depth::met();
    if AFTER.replace(met) != met {
        // It is memory that is kept for longer then.
        let _ = stack::give_back();
    }
}
