//! A permutation of 0..n that is computed place by place: no shuffled list, no state.
//!
//! Four Feistel rounds permute 0..4^h, the smallest such range that holds n; a value outside 0..n is
//! permuted again until it falls inside ("cycle walking"), which keeps it a permutation of 0..n.

/// SplitMix64's finaliser: mixes 64 bits.
pub(crate) fn mix(x: u64) -> u64 {
    let x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

/// Mixes two numbers to one.
pub(crate) fn mix2(a: u64, b: u64) -> u64 {
    mix(mix(a.wrapping_add(0x9e37_79b9_7f4a_7c15)).wrapping_add(b))
}

/// Where `i` of `0..n` goes under the permutation of this key. `i` must be below `n`.
pub(crate) fn permute(i: u64, n: u64, key: u64) -> u64 {
    debug_assert!(i < n);
    let half = (64 - n.saturating_sub(1).leading_zeros()).div_ceil(2).max(1);
    let mask = (1u64 << half) - 1;
    let mut x = i;
    loop {
        let (mut left, mut right) = (x >> half, x & mask);
        for round in 0..4 {
            (left, right) = (right, left ^ (mix2(key ^ (round << 56), right) & mask));
        }
        x = (left << half) | right;
        if x < n {
            return x;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_place_is_taken_once_for_any_size_and_key() {
        for n in [1, 2, 3, 4, 5, 16, 17, 63, 64, 65, 1000, 4097] {
            for key in [0, 1, u64::MAX] {
                let mut seen = vec![false; n as usize];
                for i in 0..n {
                    let p = permute(i, n, key) as usize;
                    assert!(!std::mem::replace(&mut seen[p], true), "n {n} key {key}: {p} twice");
                }
            }
        }
    }

    #[test]
    fn keys_give_different_orders_and_neighbours_are_scattered() {
        let order = |key| (0..1000).map(|i| permute(i, 1000, key)).collect::<Vec<_>>();
        let same = order(1).iter().zip(order(2)).filter(|(a, b)| **a == *b).count();
        assert!(same < 10, "{same} of 1000 at the same place");
        let neighbours = order(1).windows(2).filter(|w| w[0].abs_diff(w[1]) == 1).count();
        assert!(neighbours < 15, "{neighbours} of 999 neighbours stay together");
    }
}
