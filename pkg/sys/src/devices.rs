//! Which devices a control group's processes may open, make and write: version 1's rules as text, and on version 2 a small
//! program that the kernel runs at each access (`BPF_PROG_TYPE_CGROUP_DEVICE`).

use std::fmt;
use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::path::Path;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Any,
    Block,
    Char,
}

/// Allows access to devices. `None`: any number.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rule {
    pub kind: Kind,
    pub major: Option<u32>,
    pub minor: Option<u32>,
    pub read: bool,
    pub write: bool,
    pub mknod: bool,
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Any => 'a',
            Kind::Block => 'b',
            Kind::Char => 'c',
        };
        let number = |n: Option<u32>| n.map_or("*".into(), |n| n.to_string());
        let access: String =
            [(self.read, 'r'), (self.write, 'w'), (self.mknod, 'm')].iter().filter(|a| a.0).map(|a| a.1).collect();
        write!(f, "{kind} {}:{} {access}", number(self.major), number(self.minor))
    }
}

/// One instruction of the kernel's virtual machine (`struct bpf_insn`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Instruction {
    code: u8,
    registers: u8,
    offset: i16,
    immediate: i32,
}

// linux/bpf_common.h, linux/bpf.h
const LOAD_WORD: u8 = 0x61; // dst = *(u32 *)(src + offset)
const MOVE_32: u8 = 0xbc;
const MOVE_64_IMM: u8 = 0xb7;
const AND_32_IMM: u8 = 0x54;
const SHIFT_RIGHT_32_IMM: u8 = 0x74;
const JUMP_IF_NOT_EQUAL_IMM: u8 = 0x55;
const JUMP_IF_ANY_BIT_IMM: u8 = 0x45;
const EXIT: u8 = 0x95;

const PROG_LOAD: libc::c_int = 5;
const PROG_ATTACH: libc::c_int = 8;
const TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;
const ALLOW_MULTI: u32 = 2;

fn op(code: u8, dst: u8, src: u8, offset: i16, immediate: i32) -> Instruction {
    Instruction { code, registers: dst | (src << 4), offset, immediate }
}

/// The context is (access << 16 | kind, major, minor), access of mknod 1, read 2, write 4, kind block 1, char 2.
fn program(rules: &[Rule]) -> Vec<Instruction> {
    let mut code = vec![
        op(LOAD_WORD, 2, 1, 0, 0),
        op(MOVE_32, 3, 2, 0, 0),
        op(AND_32_IMM, 2, 0, 0, 0xffff),
        op(SHIFT_RIGHT_32_IMM, 3, 0, 0, 16),
        op(LOAD_WORD, 4, 1, 4, 0),
        op(LOAD_WORD, 5, 1, 8, 0),
    ];
    for rule in rules {
        let mut tests = Vec::new();
        match rule.kind {
            Kind::Any => {}
            Kind::Block => tests.push((JUMP_IF_NOT_EQUAL_IMM, 2, 1)),
            Kind::Char => tests.push((JUMP_IF_NOT_EQUAL_IMM, 2, 2)),
        }
        let denied = i32::from(!rule.mknod) | i32::from(!rule.read) << 1 | i32::from(!rule.write) << 2;
        if denied != 0 {
            tests.push((JUMP_IF_ANY_BIT_IMM, 3, denied));
        }
        tests.extend(rule.major.map(|n| (JUMP_IF_NOT_EQUAL_IMM, 4, n as i32)));
        tests.extend(rule.minor.map(|n| (JUMP_IF_NOT_EQUAL_IMM, 5, n as i32)));
        // A test that fails jumps over the tests after it and over "allow": two instructions.
        let count = tests.len();
        for (i, (test, register, value)) in tests.into_iter().enumerate() {
            code.push(op(test, register, 0, (count - i - 1 + 2) as i16, value));
        }
        code.extend([op(MOVE_64_IMM, 0, 0, 0, 1), op(EXIT, 0, 0, 0, 0)]);
    }
    code.extend([op(MOVE_64_IMM, 0, 0, 0, 0), op(EXIT, 0, 0, 0, 0)]);
    code
}

#[repr(C)]
#[derive(Default)]
struct LoadAttributes {
    kind: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

#[repr(C)]
struct AttachAttributes {
    target: u32,
    program: u32,
    kind: u32,
    flags: u32,
}

/// Attaches a program that allows what the rules allow to a version 2 group.
pub fn attach(group: &Path, rules: &[Rule]) -> io::Result<()> {
    let dir = File::open(group)?;
    let code = program(rules);
    let license = c"Apache-2.0";
    let load = LoadAttributes {
        kind: TYPE_CGROUP_DEVICE,
        count: code.len() as u32,
        instructions: code.as_ptr() as u64,
        license: license.as_ptr() as u64,
        ..LoadAttributes::default()
    };
    // SAFETY: the kernel reads `load` (of the size given), the instructions and the license, which live until it returns.
    let fd = unsafe { libc::syscall(libc::SYS_bpf, PROG_LOAD, &load, size_of::<LoadAttributes>()) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the kernel has just made this descriptor for us.
    let program = unsafe { OwnedFd::from_raw_fd(fd as i32) };
    let attach = AttachAttributes {
        target: dir.as_raw_fd() as u32,
        program: program.as_raw_fd() as u32,
        kind: ATTACH_CGROUP_DEVICE,
        flags: ALLOW_MULTI,
    };
    // SAFETY: the kernel reads `attach`, of the size given, and keeps its own reference to the program.
    let r = unsafe { libc::syscall(libc::SYS_bpf, PROG_ATTACH, &attach, size_of::<AttachAttributes>()) };
    if r < 0 { Err(io::Error::last_os_error()) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(kind: Kind, major: Option<u32>, minor: Option<u32>, access: &str) -> Rule {
        let has = |c| access.contains(c);
        Rule { kind, major, minor, read: has('r'), write: has('w'), mknod: has('m') }
    }

    /// Runs a program as the kernel would.
    fn run(code: &[Instruction], kind: u32, access: u32, major: u32, minor: u32) -> u32 {
        let context = [access << 16 | kind, major, minor];
        let (mut r, mut at) = ([0u32; 11], 0usize);
        loop {
            let i = code[at];
            let (dst, src) = ((i.registers & 15) as usize, (i.registers >> 4) as usize);
            at += 1;
            match i.code {
                LOAD_WORD => r[dst] = context[i.offset as usize / 4],
                MOVE_32 => r[dst] = r[src],
                MOVE_64_IMM => r[dst] = i.immediate as u32,
                AND_32_IMM => r[dst] &= i.immediate as u32,
                SHIFT_RIGHT_32_IMM => r[dst] >>= i.immediate,
                JUMP_IF_NOT_EQUAL_IMM if r[dst] != i.immediate as u32 => at += i.offset as usize,
                JUMP_IF_ANY_BIT_IMM if r[dst] & i.immediate as u32 != 0 => at += i.offset as usize,
                JUMP_IF_NOT_EQUAL_IMM | JUMP_IF_ANY_BIT_IMM => {}
                EXIT => return r[0],
                other => panic!("no such instruction: {other:#x}"),
            }
        }
    }

    #[test]
    fn the_program_allows_what_the_rules_allow() {
        let (mknod, read, write) = (1, 2, 4);
        let code = program(&[
            rule(Kind::Char, None, None, "m"),
            rule(Kind::Char, Some(1), Some(3), "rwm"),
            rule(Kind::Char, Some(136), None, "rwm"),
            rule(Kind::Block, Some(8), Some(0), "r"),
        ]);
        let table = [
            (2, read | write, 1, 3, 1, "/dev/null"),
            (2, read, 1, 4, 0, "another of the same major"),
            (2, mknod, 1, 4, 1, "any char device may be made"),
            (1, mknod, 1, 4, 0, "no block device may be made"),
            (2, write, 136, 77, 1, "any terminal"),
            (1, read, 8, 0, 1, "the disk may be read"),
            (1, read | write, 8, 0, 0, "but not written"),
            (2, read, 8, 0, 0, "a char device with the disk's numbers"),
        ];
        for (kind, access, major, minor, want, why) in table {
            assert_eq!(run(&code, kind, access, major, minor), want, "{why}");
        }
        assert_eq!(run(&program(&[]), 2, read, 1, 3), 0);
        assert_eq!(run(&program(&[rule(Kind::Any, None, None, "rwm")]), 1, write, 8, 0), 1);
    }

    /// With the kernel's own verifier and a real group, where this machine has the version 2 hierarchy.
    #[test]
    fn the_kernel_takes_and_obeys_the_program() {
        use crate::cgroup::Hierarchies;
        let hierarchies = Hierarchies::detect().unwrap();
        let group = hierarchies.group(&format!("/isopod-devices-{}", std::process::id())).unwrap();
        let Some(dir) = group.unified().filter(|_| nix::unistd::geteuid().is_root()) else { return };
        std::fs::create_dir(&dir).unwrap();
        let attached = attach(&dir, &[rule(Kind::Char, Some(1), Some(3), "rw")]);
        let script = format!("echo $$ > {}/cgroup.procs; : < /dev/null && : < /dev/full", dir.display());
        let run = std::process::Command::new("/bin/sh").args(["-c", &script]).output().unwrap();
        std::fs::remove_dir(&dir).unwrap();
        attached.unwrap();
        let said = String::from_utf8_lossy(&run.stderr);
        assert!(!run.status.success() && said.contains("/dev/full") && !said.contains("/dev/null"), "{said}");
    }

    #[test]
    fn rules_have_version_1_words() {
        assert_eq!(rule(Kind::Char, Some(1), None, "rw").to_string(), "c 1:* rw");
        assert_eq!(rule(Kind::Any, None, None, "rwm").to_string(), "a *:* rwm");
    }
}
