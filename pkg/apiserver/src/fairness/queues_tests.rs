//! Tests of the queues on a clock of their own: shares, order, limits, and seats that come back.

use super::*;
use proptest::prelude::*;

const QUEUES: Discipline = Discipline::Queue { queues: 8, hand: 3, length: 10 };

fn ms(n: u64) -> Moment {
    Duration::from_millis(n)
}

fn set(discipline: Discipline, limit: u32) -> Queues<&'static str> {
    let mut all = Queues::new(discipline, limit, ms(0));
    all.flows.push(FlowStats::new("test".into()));
    all
}

fn arrival(hash: u64, work: Work) -> Arrival {
    Arrival { hash, flow: 0, work, watch: false }
}

/// Runs clients that always want something, each for `took` at a time, and returns the time that each has had seats.
/// Clients: hash of the flow, how many requests they keep going, seats of each.
fn compete(limit: u32, clients: &[(u64, usize, u32)], took: u64, rounds: u64) -> Vec<u64> {
    let discipline = Discipline::Queue { queues: 64, hand: 6, length: 100 };
    let mut all = Queues::new(discipline, limit, ms(0));
    all.flows.push(FlowStats::new("test".into()));
    let mut served = vec![0; clients.len()];
    let mut ends: Vec<(u64, Id)> = Vec::new();
    let begin = |all: &mut Queues<usize>, now: u64, who: usize| {
        let (hash, _, seats) = clients[who];
        all.start(ms(now), arrival(hash, Work::seats(seats)), who).ok()
    };
    for (who, (_, width, _)) in clients.iter().enumerate() {
        for _ in 0..*width {
            if let Some((id, State::Executing)) = begin(&mut all, 0, who) {
                ends.push((took, id));
            }
        }
    }
    for now in 1..rounds {
        let (over, rest): (Vec<_>, Vec<_>) = ends.into_iter().partition(|(at, _)| *at <= now);
        ends = rest;
        for (_, id) in over {
            let who = *all.detail(id).expect("it runs");
            served[who] += took * u64::from(clients[who].2);
            all.end(ms(now), id);
            if let Some((id, State::Executing)) = begin(&mut all, now, who) {
                ends.push((now + took, id));
            }
            ends.extend(all.take_started().into_iter().map(|id| (now + took, id)));
        }
        assert!(all.seats_in_use() <= limit);
    }
    served
}

#[test]
fn flows_share_alike_however_much_they_ask_for() {
    // An elephant with a hundred requests, and two mice with ten each.
    let served = compete(10, &[(1, 100, 1), (98_765_432_123, 10, 1), (31_415_926_535_897, 10, 1)], 20, 10_000);
    let least = *served.iter().min().unwrap() as f64;
    let most = *served.iter().max().unwrap() as f64;
    // The elephant has several queues of its hand.
    assert!(served[0] as f64 <= 6.5 * least, "{served:?}");
    assert!(served[1] as f64 / served[2] as f64 > 0.7 && (served[1] as f64 / served[2] as f64) < 1.4, "{served:?}");
    assert!(most / 10_000.0 < 10.0 && served.iter().sum::<u64>() > 95_000, "{served:?}");
}

#[test]
fn wide_requests_count_as_what_they_take() {
    let served = compete(12, &[(1, 20, 1), (98_765_432_123, 20, 4)], 20, 20_000);
    let ratio = served[0] as f64 / served[1] as f64;
    assert!((0.6..1.7).contains(&ratio), "{served:?}");
}

#[test]
fn what_is_exempt_is_never_held_up() {
    let mut all = set(Discipline::Exempt, 0);
    let ids: Vec<Id> = (0..50).map(|_| all.start(ms(0), arrival(0, Work::seats(1)), "").unwrap().0).collect();
    assert_eq!(all.executing(), 50);
    ids.into_iter().for_each(|id| all.end(ms(1), id));
    assert!(all.is_idle());
}

#[test]
fn without_queues_the_limit_refuses() {
    let mut all = set(Discipline::Reject, 2);
    let first = all.start(ms(0), arrival(0, Work::seats(2)), "").unwrap().0;
    assert_eq!(all.start(ms(0), arrival(0, Work::seats(1)), "").unwrap_err(), Refused::ConcurrencyLimit);
    all.end(ms(1), first);
    assert!(all.start(ms(1), arrival(0, Work::seats(1)), "").is_ok());
    assert_eq!((all.tally.dispatched, all.tally.rejected), (2, 1));
}

#[test]
fn a_full_queue_refuses_and_who_gives_up_makes_room() {
    let mut all = set(Discipline::Queue { queues: 1, hand: 1, length: 2 }, 1);
    let running = all.start(ms(0), arrival(7, Work::seats(1)), "a").unwrap();
    assert_eq!(running.1, State::Executing);
    let second = all.start(ms(0), arrival(7, Work::seats(1)), "b").unwrap();
    let third = all.start(ms(0), arrival(7, Work::seats(1)), "c").unwrap();
    assert_eq!((second.1, third.1), (State::Waiting, State::Waiting));
    assert_eq!(all.start(ms(0), arrival(7, Work::seats(1)), "d").unwrap_err(), Refused::QueueFull);
    all.end(ms(5), second.0);
    assert!(all.take_started().is_empty());
    all.end(ms(6), running.0);
    assert_eq!(all.take_started(), [third.0]);
    assert_eq!((all.tally.cancelled, all.flows[0].rejected_late, all.flows[0].rejected_full), (1, 1, 1));
}

#[test]
fn seats_linger_after_the_answer() {
    let mut all = set(QUEUES, 4);
    let work = Work { seats: 1, final_seats: 4, lingering: ms(10) };
    let write = all.start(ms(0), arrival(1, work), "write").unwrap().0;
    let read = all.start(ms(0), arrival(2, Work::seats(1)), "read").unwrap();
    assert_eq!(read.1, State::Waiting);
    all.end(ms(2), write);
    assert!(all.is_idle() || all.waiting() == 1);
    assert_eq!(all.next_release(), Some(ms(12)));
    all.advance(ms(11));
    assert!(all.take_started().is_empty());
    all.advance(ms(12));
    assert_eq!(all.take_started(), [read.0]);
    assert_eq!(all.seats_in_use(), 1);
}

#[test]
fn what_is_wider_than_all_seats_runs_alone_and_lingers_longer() {
    let mut all = set(QUEUES, 2);
    let other = all.start(ms(0), arrival(1, Work::seats(1)), "").unwrap().0;
    let work = Work { seats: 1, final_seats: 4, lingering: ms(10) };
    let wide = all.start(ms(0), arrival(2, work), "").unwrap();
    assert_eq!(wide.1, State::Waiting);
    all.end(ms(1), other);
    assert_eq!(all.take_started(), [wide.0]);
    all.end(ms(2), wide.0);
    assert_eq!(all.next_release(), Some(ms(22)));
    all.advance(ms(22));
    assert_eq!(all.seats_in_use(), 0);
}

#[test]
fn a_lower_limit_is_reached_and_more_queues_do_not_lose_anybody() {
    let mut all = set(QUEUES, 4);
    let running: Vec<Id> = (0..4).map(|h| all.start(ms(0), arrival(h, Work::seats(1)), "").unwrap().0).collect();
    let waiting = all.start(ms(0), arrival(9_999_999, Work::seats(1)), "").unwrap().0;
    all.configure(Discipline::Queue { queues: 2, hand: 1, length: 10 }, 1, ms(1));
    for id in &running[..3] {
        all.end(ms(2), *id);
    }
    assert!(all.take_started().is_empty());
    all.end(ms(3), running[3]);
    assert_eq!(all.take_started(), [waiting]);
    all.end(ms(4), waiting);
    assert_eq!(all.queues.len(), 2);
    all.configure(Discipline::Reject, 1, ms(5));
    assert!(all.queues.is_empty() && all.seats_in_use() == 0);
}

#[derive(Clone, Debug)]
enum Step {
    Start { hash: u64, seats: u32, after: u32, lingering: u64 },
    End(usize),
    Wait(u64),
    Limit(u32),
    Discipline(usize, usize),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        5 => (0_u64..1_000_000, 1_u32..5, 0_u32..8, 0_u64..20).prop_map(|(hash, seats, after, lingering)| {
            Step::Start { hash, seats, after, lingering }
        }),
        4 => any::<usize>().prop_map(Step::End),
        2 => (0_u64..10).prop_map(Step::Wait),
        1 => (0_u32..8).prop_map(Step::Limit),
        1 => (0_usize..5, 1_usize..3).prop_map(|(queues, hand)| Step::Discipline(queues, hand)),
    ]
}

/// Counts everything anew and compares.
fn check(all: &Queues<u32>) {
    let of = |state: State| all.requests().filter(move |(_, r)| r.state == state);
    assert_eq!(of(State::Waiting).count(), all.waiting() as usize);
    assert_eq!(of(State::Executing).count(), all.executing() as usize);
    let width = |r: &Request<u32>| r.work.width();
    let used: u32 = all.requests().filter(|(_, r)| r.state != State::Waiting).map(|(_, r)| width(r)).sum();
    assert_eq!(used, all.seats_in_use());
    assert_eq!(all.flows[0].seats_executing, used);
    assert_eq!(all.flows[0].waiting, all.waiting());
    let active = all.queues.iter().filter(|q| q.is_active()).count();
    assert_eq!(active, all.active_queues as usize);
    let queued: usize = all.queues.iter().map(|q| q.waiting.len()).sum();
    assert_eq!(queued, all.waiting() as usize);
    let in_queues: u32 = all.queues.iter().map(|q| q.seats_in_use).sum();
    assert_eq!(in_queues + all.seats_queueless, used);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]
    #[test]
    fn no_seat_is_lost_and_no_limit_broken(steps in proptest::collection::vec(step(), 1..120)) {
        let mut all: Queues<u32> = Queues::new(QUEUES, 5, ms(0));
        all.flows.push(FlowStats::new("test".into()));
        let (mut now, mut mine, mut limit_held) = (0, Vec::new(), 5);
        for step in steps {
            let before = all.seats_in_use();
            match step {
                Step::Start { hash, seats, after, lingering } => {
                    let work = Work { seats, final_seats: after, lingering: ms(lingering) };
                    if let Ok((id, _)) = all.start(ms(now), arrival(hash, work), 0) {
                        mine.push(id);
                    }
                }
                Step::End(which) if !mine.is_empty() => {
                    let id = mine.swap_remove(which % mine.len());
                    all.end(ms(now), id);
                }
                Step::End(_) => {}
                Step::Wait(time) => {
                    now += time;
                    all.advance(ms(now));
                }
                Step::Limit(limit) => {
                    limit_held = limit;
                    let discipline = all.discipline;
                    all.configure(discipline, limit, ms(now));
                }
                Step::Discipline(0, _) => all.configure(Discipline::Reject, limit_held, ms(now)),
                Step::Discipline(queues, hand) => {
                    let hand = hand.min(queues);
                    all.configure(Discipline::Queue { queues, hand, length: 3 }, limit_held, ms(now));
                }
            }
            check(&all);
            // More seats are taken only within the limit, but by one that runs alone.
            let grew = all.seats_in_use() > before;
            prop_assert!(!grew || all.seats_in_use() <= limit_held || all.executing() == 1);
        }
        // Whoever waits gets a turn when the others end.
        all.configure(QUEUES, 5, ms(now));
        for _ in 0..1000 {
            if mine.is_empty() { break; }
            now += 50;
            all.advance(ms(now));
            let running = mine.iter().position(|id| all.request(*id).is_some_and(|r| r.state == State::Executing));
            match running {
                Some(running) => all.end(ms(now), mine.swap_remove(running)),
                // What was answered keeps its seats for a while.
                None => prop_assert!(all.next_release().is_some(), "requests wait and none runs"),
            }
            check(&all);
        }
        all.advance(ms(now + 1000));
        prop_assert!(all.is_idle() && all.seats_in_use() == 0 && all.next_release().is_none());
    }
}
