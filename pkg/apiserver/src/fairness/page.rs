//! `apiserver_flowcontrol_…` of `/metrics`.

use super::Fairness;
use super::level::Inner;
use super::stats::{FlowStats, Histogram};
use crate::exposition::{Family, Page};

/// A number of a level.
type OfLevel = (&'static str, &'static str, fn(&Inner) -> f64);
/// A number of a flow schema in a level.
type OfFlow = (&'static str, &'static str, fn(&FlowStats) -> f64);
/// A distribution of a flow schema in a level, and the label that tells it from its sibling.
type Spread = (&'static str, &'static str, &'static str, [(&'static str, fn(&FlowStats) -> &Histogram); 2]);

const OF_LEVELS: [OfLevel; 10] = [
    ("nominal_limit_seats", "Nominal number of execution seats configured for each priority level", |l| {
        l.limits.nominal.into()
    }),
    (
        "lower_limit_seats",
        "Configured lower bound on number of execution seats available to each priority level",
        |l| l.limits.min.into(),
    ),
    (
        "upper_limit_seats",
        "Configured upper bound on number of execution seats available to each priority level",
        |l| l.limits.max.into(),
    ),
    ("current_limit_seats", "current derived number of execution seats available to each priority level", |l| {
        l.queues.limit.into()
    }),
    ("demand_seats_high_watermark", "High watermark, over last adjustment period, of demand_seats", |l| {
        l.demand.high_watermark.into()
    }),
    ("demand_seats_average", "Time-weighted average, over last adjustment period, of demand_seats", |l| {
        l.demand.average
    }),
    ("demand_seats_stdev", "Time-weighted standard deviation, over last adjustment period, of demand_seats", |l| {
        l.demand.deviation
    }),
    ("demand_seats_smoothed", "Smoothed seat demands", |l| l.demand.smoothed),
    ("target_seats", "Seat allocation targets", |l| l.target),
    ("current_r", "R(time of last change)", |l| l.queues.progress.as_f64()),
];

const GAUGES: [OfFlow; 4] = [
    (
        "current_inqueue_requests",
        "Number of requests currently pending in queues of the API Priority and Fairness subsystem",
        |f| f.waiting.into(),
    ),
    (
        "current_inqueue_seats",
        "Number of seats currently pending in queues of the API Priority and Fairness subsystem",
        |f| f.seats_waiting.into(),
    ),
    (
        "current_executing_requests",
        "Number of requests in initial (for a WATCH) or any (for a non-WATCH) execution stage in the API Priority and Fairness subsystem",
        |f| f.executing.into(),
    ),
    (
        "current_executing_seats",
        "Concurrency (number of seats) occupied by the currently executing (initial stage for a WATCH, any stage otherwise) requests in the API Priority and Fairness subsystem",
        |f| f.seats_executing.into(),
    ),
];

const COUNTERS: [OfFlow; 2] = [
    ("dispatched_requests_total", "Number of requests executed by API Priority and Fairness subsystem", |f| {
        f.dispatched as f64
    }),
    (
        "request_dispatch_no_accommodation_total",
        "Number of times a dispatch attempt resulted in a non accommodation due to lack of available seats",
        |f| f.no_accommodation as f64,
    ),
];

/// Why requests were refused.
const REASONS: [(&str, fn(&FlowStats) -> u64); 3] = [
    ("concurrency-limit", |f| f.rejected_limit),
    ("queue-full", |f| f.rejected_full),
    ("time-out", |f| f.rejected_late),
];

const SPREADS: [Spread; 5] = [
    (
        "request_wait_duration_seconds",
        "Length of time a request spent waiting in its queue",
        "execute",
        [("true", |f| &f.waited), ("false", |f| &f.waited_in_vain)],
    ),
    (
        "request_execution_seconds",
        "Duration of initial stage (for a WATCH) or any (for a non-WATCH) stage of request execution in the API Priority and Fairness subsystem",
        "type",
        [("regular", |f| &f.executed), ("watch", |f| &f.watches_begun)],
    ),
    (
        "request_queue_length_after_enqueue",
        "Length of queue in the API Priority and Fairness subsystem, as seen by each request after it is enqueued",
        "",
        [("", |f| &f.lengths), ("", |f| &f.lengths)],
    ),
    (
        "work_estimated_seats",
        "Number of estimated seats (maximum of initial and final seats) associated with requests in API Priority and Fairness",
        "",
        [("", |f| &f.seats), ("", |f| &f.seats)],
    ),
    (
        "watch_count_samples",
        "count of watchers for mutating requests in API Priority and Fairness",
        "",
        [("", |f| &f.watchers), ("", |f| &f.watchers)],
    ),
];

/// Adds what there is to tell.
pub fn write(fairness: &Fairness, page: &mut Page) {
    let digest = fairness.digest.load();
    let levels = || digest.levels.values();
    let name = |short: &str| format!("apiserver_flowcontrol_{short}");
    for (short, help, value) in OF_LEVELS {
        let mut family = page.family(&name(short), help, "gauge");
        levels().for_each(|l| family.value(&[("priority_level", &*l.name)], value(&l.lock())));
    }
    page.family(
        &name("seat_fair_frac"),
        "Fair fraction of server's concurrency to allocate to each priority level that can use it",
        "gauge",
    )
    .value(&[], digest.fair());
    let of_flows = |family: &mut Family<'_>, value: fn(&FlowStats) -> f64| {
        for level in levels() {
            for flow in &level.lock().queues.flows {
                family.value(&[("flow_schema", &*flow.schema), ("priority_level", &*level.name)], value(flow));
            }
        }
    };
    for (short, help, value) in GAUGES {
        of_flows(&mut page.family(&name(short), help, "gauge"), value);
    }
    for (short, help, value) in COUNTERS {
        of_flows(&mut page.family(&name(short), help, "counter"), value);
    }
    let help = "Number of requests rejected by API Priority and Fairness subsystem";
    let mut family = page.family(&name("rejected_requests_total"), help, "counter");
    for level in levels() {
        for flow in &level.lock().queues.flows {
            for (reason, count) in REASONS.map(|(reason, count)| (reason, count(flow))).into_iter().filter(|r| r.1 > 0)
            {
                let labels = [("flow_schema", &*flow.schema), ("priority_level", &*level.name), ("reason", reason)];
                family.value(&labels, count as f64);
            }
        }
    }
    for (short, help, label, variants) in SPREADS {
        let mut family = page.family(&name(short), help, "histogram");
        for level in levels() {
            for flow in &level.lock().queues.flows {
                let variants = if label.is_empty() { &variants[..1] } else { &variants[..] };
                for (value, histogram) in variants.iter().map(|(v, h)| (*v, h(flow))).filter(|(_, h)| !h.is_empty()) {
                    let mut labels = vec![("flow_schema", &*flow.schema), ("priority_level", &*level.name)];
                    if !label.is_empty() {
                        labels.push((label, value));
                        labels.sort_unstable();
                    }
                    family.histogram(&labels, histogram.bounds, &histogram.counts, histogram.sum);
                }
            }
        }
    }
}
