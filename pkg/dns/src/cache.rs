//! Others' answers, for as long as they say and not longer than half a minute.
//!
//! Invariants: bounded in entries and bytes; what is answered from here has the rest of its time to live.

use hickory_proto::op::{Message, ResponseCode};
use hickory_proto::rr::{RData, RecordType};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::time::{Duration, Instant};

const ENTRIES: usize = 1000;
/// A longer answer is rare, and asked again.
const MAX_BYTES: usize = 2048;
/// CoreDNS's limit in Kubernetes' configuration.
const LONGEST: Duration = Duration::from_secs(30);

/// Name in lower case, type, class, whether DNSSEC records are wanted.
pub(crate) type CacheKey = (String, u16, u16, bool);

struct Entry {
    answer: Vec<u8>,
    from: Instant,
    until: Instant,
}

#[derive(Default)]
pub(crate) struct Cache(Mutex<HashMap<CacheKey, Entry>>);

impl Cache {
    /// The answer as it is now, its id still that of the question it was got for.
    pub(crate) fn get(&self, key: &CacheKey, now: Instant) -> Option<Message> {
        let entries = self.0.lock();
        let entry = entries.get(key).filter(|e| now < e.until)?;
        let mut message = Message::from_vec(&entry.answer).ok()?;
        let age = u32::try_from(now.duration_since(entry.from).as_secs()).unwrap_or(u32::MAX);
        let sections = [&mut message.answers, &mut message.authorities, &mut message.additionals];
        for record in sections.into_iter().flatten() {
            record.ttl = record.ttl.saturating_sub(age);
        }
        Some(message)
    }

    pub(crate) fn put(&self, key: CacheKey, answer: &[u8], now: Instant) {
        let ttl = Message::from_vec(answer).ok().filter(|_| answer.len() <= MAX_BYTES).and_then(|m| time_to_live(&m));
        let Some(ttl) = ttl.filter(|t| !t.is_zero()) else { return };
        let mut entries = self.0.lock();
        if entries.len() >= ENTRIES && !entries.contains_key(&key) {
            entries.retain(|_, e| now < e.until);
            // All are fresh: begin anew rather than keep an order of use.
            if entries.len() >= ENTRIES {
                entries.clear();
            }
        }
        entries.insert(key, Entry { answer: answer.to_vec(), from: now, until: now + ttl });
    }
}

/// How long the answer holds; `None` when it is not to be kept.
fn time_to_live(message: &Message) -> Option<Duration> {
    let usable = matches!(message.metadata.response_code, ResponseCode::NoError | ResponseCode::NXDomain);
    if !usable || message.metadata.truncation {
        return None;
    }
    let seconds = if message.answers.is_empty() || message.metadata.response_code == ResponseCode::NXDomain {
        // RFC 2308: the lesser of the SOA's own time and its minimum.
        message.authorities.iter().find_map(|r| match &r.data {
            RData::SOA(soa) => Some(r.ttl.min(soa.minimum)),
            _ => None,
        })?
    } else {
        let all = message.answers.iter().chain(&message.authorities).chain(&message.additionals);
        all.filter(|r| r.record_type() != RecordType::OPT).map(|r| r.ttl).min()?
    };
    Some(Duration::from_secs(seconds.into()).min(LONGEST))
}

#[cfg(test)]
mod tests {
    use super::*;
    use hickory_proto::op::{MessageType, OpCode};
    use hickory_proto::rr::rdata::{A, SOA};
    use hickory_proto::rr::{Name, Record};
    use std::net::Ipv4Addr;

    fn message(answers: &[u32], soa: Option<(u32, u32)>, code: ResponseCode) -> Vec<u8> {
        let name = Name::from_ascii("example.org.").unwrap();
        let mut m = Message::new(7, MessageType::Response, OpCode::Query);
        m.metadata.response_code = code;
        for ttl in answers {
            m.add_answer(Record::from_rdata(name.clone(), *ttl, RData::A(A(Ipv4Addr::LOCALHOST))));
        }
        if let Some((ttl, minimum)) = soa {
            let soa = SOA::new(name.clone(), name.clone(), 1, 2, 3, 4, minimum);
            m.add_authority(Record::from_rdata(name, ttl, RData::SOA(soa)));
        }
        m.to_vec().unwrap()
    }

    #[test]
    fn answers_age_and_end() {
        for (answers, soa, code, seconds) in [
            (&[20, 10][..], None, ResponseCode::NoError, 10),
            (&[300], None, ResponseCode::NoError, 30),
            (&[0], None, ResponseCode::NoError, 0),
            (&[], None, ResponseCode::NoError, 0),
            (&[], Some((20, 9)), ResponseCode::NoError, 9),
            (&[], Some((8, 9)), ResponseCode::NXDomain, 8),
            (&[10], None, ResponseCode::ServFail, 0),
        ] {
            let (cache, now) = (Cache::default(), Instant::now());
            let key = || ("example.org.".to_owned(), 1, 1, false);
            cache.put(key(), &message(answers, soa, code), now);
            let at = |s: u64| cache.get(&key(), now + Duration::from_secs(s));
            assert_eq!(at(0).is_some(), seconds > 0, "{answers:?} {code}");
            assert!(at(seconds).is_none());
            if seconds > 1 {
                let aged = at(seconds - 1).unwrap();
                let first = aged.answers.iter().chain(&aged.authorities).next().unwrap();
                let ttl = answers.iter().copied().chain(soa.map(|s| s.0)).next().unwrap();
                assert_eq!(u64::from(first.ttl), u64::from(ttl) - (seconds - 1));
            }
        }
    }

    #[test]
    fn it_is_bounded() {
        let (cache, now) = (Cache::default(), Instant::now());
        for i in 0..3 * ENTRIES {
            cache.put((i.to_string(), 1, 1, false), &message(&[20], None, ResponseCode::NoError), now);
        }
        assert!(cache.0.lock().len() <= ENTRIES);
    }
}
