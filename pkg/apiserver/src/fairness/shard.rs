//! Shuffle sharding: each flow has a hand of queues that depends on its name alone, so that one that floods its queues meets
//! few other flows in all of theirs.

use sha2::{Digest, Sha256};

/// No valid configuration deals more cards: see the validation of priority levels.
pub const LARGEST_HAND: usize = 15;

/// The hash that deals a flow its hand.
pub fn flow_hash(schema: &str, distinguisher: &str) -> u64 {
    let mut hash = Sha256::new();
    hash.update(schema.as_bytes());
    hash.update([0]);
    hash.update(distinguisher.as_bytes());
    let sum = hash.finalize();
    let mut first = [0; 8];
    first.copy_from_slice(&sum[..8]);
    u64::from_le_bytes(first)
}

/// Deals `hand` different cards of a deck, all hands being about equally likely. Returns them, and how many there are.
pub fn deal(mut hash: u64, deck: usize, hand: usize) -> ([usize; LARGEST_HAND], usize) {
    let hand = hand.min(LARGEST_HAND).min(deck);
    // Each card's place among those that are left when it is dealt.
    let mut places = [0; LARGEST_HAND];
    for (i, place) in places.iter_mut().enumerate().take(hand) {
        let left = (deck - i) as u64;
        *place = (hash % left) as usize;
        hash /= left;
    }
    let mut cards = [0; LARGEST_HAND];
    for i in 0..hand {
        cards[i] = (0..i).rev().fold(places[i], |card, before| card + usize::from(card >= places[before]));
    }
    (cards, hand)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn a_hand_has_no_card_twice(hash: u64, deck in 1_usize..200, hand in 1_usize..8) {
            let hand = hand.min(deck);
            let (cards, n) = deal(hash, deck, hand);
            prop_assert_eq!(n, hand);
            let mut sorted = cards[..n].to_vec();
            sorted.sort_unstable();
            sorted.dedup();
            prop_assert_eq!(sorted.len(), hand);
            prop_assert!(sorted.iter().all(|c| *c < deck));
        }
    }

    #[test]
    fn hands_are_those_of_upstream() {
        // 0 takes the first card that is left, again and again; upstream deals the others so.
        for (hash, deck, hand, want) in [
            (0, 8, 3, vec![0, 1, 2]),
            (511, 128, 3, vec![127, 3, 0]),
            (8_238_791_057_607_451_177, 128, 6, vec![41, 119, 0, 49, 67, 79]),
        ] {
            let (cards, n) = deal(hash, deck, hand);
            assert_eq!(n, hand);
            assert_eq!(cards[..want.len()], want, "{hash}");
        }
    }

    #[test]
    fn a_flow_keeps_its_hash() {
        assert_eq!(flow_hash("service-accounts", "a"), flow_hash("service-accounts", "a"));
        assert_ne!(flow_hash("service-accounts", "a"), flow_hash("service-account", "sa"));
    }
}
