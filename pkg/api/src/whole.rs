//! Whole numbers of any size, which take the time and memory of machine integers while they fit into one.
//!
//! Invariant: what fits into an `i128` is one, so equal numbers are equal values.

use num_bigint::{BigInt, Sign};
use std::cmp::Ordering;
use std::fmt;

#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Whole {
    Small(i128),
    Large(BigInt),
}

impl Default for Whole {
    fn default() -> Self {
        Whole::Small(0)
    }
}

impl From<i128> for Whole {
    fn from(value: i128) -> Self {
        Whole::Small(value)
    }
}

impl From<i64> for Whole {
    fn from(value: i64) -> Self {
        Whole::Small(value.into())
    }
}

impl From<BigInt> for Whole {
    fn from(value: BigInt) -> Self {
        i128::try_from(&value).map_or_else(|_| Whole::Large(value), Whole::Small)
    }
}

fn power_of_ten(n: u32) -> BigInt {
    BigInt::from(10).pow(n)
}

impl Whole {
    /// The number that these digits are.
    pub fn parse(digits: &str) -> Option<Self> {
        digits.parse().map(Whole::Small).ok().or_else(|| digits.parse::<BigInt>().ok().map(Whole::from))
    }

    fn big(&self) -> BigInt {
        match self {
            Whole::Small(i) => BigInt::from(*i),
            Whole::Large(big) => big.clone(),
        }
    }

    pub fn is_zero(&self) -> bool {
        *self == Whole::Small(0)
    }

    /// -1, 0 or 1.
    pub fn sign(&self) -> i32 {
        match self {
            Whole::Small(i) => i.signum() as i32,
            Whole::Large(big) if big.sign() == Sign::Minus => -1,
            Whole::Large(_) => 1,
        }
    }

    /// How many decimal digits it has, or one more.
    pub fn digits(&self) -> u64 {
        match self {
            Whole::Small(i) => u64::from(i.unsigned_abs().checked_ilog10().unwrap_or(0)) + 1,
            Whole::Large(big) => big.bits() * 30103 / 100_000 + 1,
        }
    }

    pub fn negated(&self) -> Self {
        match self {
            Whole::Small(i) if *i != i128::MIN => Whole::Small(-i),
            _ => Whole::from(-self.big()),
        }
    }

    pub fn plus(&self, other: &Self) -> Self {
        if let (Whole::Small(a), Whole::Small(b)) = (self, other)
            && let Some(sum) = a.checked_add(*b)
        {
            return Whole::Small(sum);
        }
        Whole::from(self.big() + other.big())
    }

    pub fn times(&self, other: &Self) -> Self {
        if let (Whole::Small(a), Whole::Small(b)) = (self, other)
            && let Some(product) = a.checked_mul(*b)
        {
            return Whole::Small(product);
        }
        Whole::from(self.big() * other.big())
    }

    /// Times `10^n`.
    pub fn scaled_up(&self, n: u32) -> Self {
        if let Whole::Small(i) = self
            && let Some(product) = 10i128.checked_pow(n).and_then(|power| i.checked_mul(power))
        {
            return Whole::Small(product);
        }
        Whole::from(self.big() * power_of_ten(n))
    }

    /// Divided by `10^n`, rounded away from zero. Also says whether it was exact.
    pub fn scaled_down(&self, n: u32) -> (Self, bool) {
        if u64::from(n) > self.digits() {
            return (Whole::Small(self.sign().into()), self.is_zero());
        }
        if let (Whole::Small(i), Some(power)) = (self, 10i128.checked_pow(n)) {
            let (quotient, rest) = (i / power, i % power);
            return (Whole::Small(quotient + rest.signum()), rest == 0);
        }
        let (big, power) = (self.big(), power_of_ten(n));
        let (quotient, exact) = (&big / &power, (&big % &power).sign() == Sign::NoSign);
        (Whole::from(if exact { quotient } else { quotient + self.sign() }), exact)
    }

    /// How often it can be divided by this, and what is left then. Zero is left as it is.
    pub fn without_factors(&self, factor: i32) -> (Self, usize) {
        let (mut value, mut times) = (self.big(), 0);
        while !self.is_zero() && (&value % factor).sign() == Sign::NoSign {
            value /= factor;
            times += 1;
        }
        (Whole::from(value), times)
    }

    /// The nearest number of this type.
    pub fn to_i64(&self) -> i64 {
        match self {
            Whole::Small(i) => (*i).clamp(i64::MIN.into(), i64::MAX.into()) as i64,
            Whole::Large(_) if self.sign() < 0 => i64::MIN,
            Whole::Large(_) => i64::MAX,
        }
    }

    /// Its last 64 bits.
    pub fn wrapping_i64(&self) -> i64 {
        match self {
            Whole::Small(i) => *i as i64,
            Whole::Large(big) => {
                let low = big.iter_u64_digits().next().unwrap_or_default().cast_signed();
                if big.sign() == Sign::Minus { low.wrapping_neg() } else { low }
            }
        }
    }

    pub fn to_f64(&self) -> f64 {
        match self {
            Whole::Small(i) => *i as f64,
            Whole::Large(big) => big.to_string().parse().unwrap_or(f64::INFINITY),
        }
    }
}

impl fmt::Display for Whole {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Whole::Small(i) => i.fmt(f),
            Whole::Large(big) => big.fmt(f),
        }
    }
}

impl PartialOrd for Whole {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

impl Ord for Whole {
    fn cmp(&self, other: &Self) -> Ordering {
        match (self, other) {
            (Whole::Small(a), Whole::Small(b)) => a.cmp(b),
            _ => self.big().cmp(&other.big()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn whole(text: &str) -> Whole {
        match text.strip_prefix('-') {
            Some(digits) => Whole::parse(digits).unwrap().negated(),
            None => Whole::parse(text).unwrap(),
        }
    }

    #[test]
    fn small_and_large_numbers_are_one_kind() {
        let max = i128::MAX.to_string();
        let beyond = whole(&max).plus(&Whole::from(1i64));
        assert_eq!(beyond.to_string(), "170141183460469231731687303715884105728");
        assert_eq!(beyond.plus(&Whole::from(-1i64)), Whole::Small(i128::MAX));
        assert_eq!(beyond.negated(), Whole::Small(i128::MIN));
        assert_eq!(Whole::Small(i128::MIN).negated(), beyond);
        assert!(beyond > Whole::Small(i128::MAX) && beyond.negated() < Whole::Small(0));
        assert_eq!((beyond.sign(), beyond.to_i64(), beyond.negated().to_i64()), (1, i64::MAX, i64::MIN));
        let nines = "9".repeat(60);
        assert_eq!(whole(&nines).times(&whole("10")).to_string(), format!("{nines}0"));
        assert_eq!(whole(&nines).scaled_up(3).scaled_down(3), (whole(&nines), true));
        assert_eq!(whole(&format!("-{nines}")).scaled_down(59), (whole("-10"), false));
        assert_eq!(whole("1").scaled_down(80), (whole("1"), false));
        assert_eq!(whole("0").scaled_down(80), (whole("0"), true));
        assert_eq!(
            whole("1").scaled_up(50).without_factors(1024),
            (whole("5").times(&whole(&5i128.pow(49).to_string())), 5)
        );
        assert_eq!(Whole::from(BigInt::from(1) << 128u32).plus(&whole("7")).wrapping_i64(), 7);
        assert_eq!((whole("999").digits(), whole("1000").digits()), (3, 4));
        assert!((60..=61).contains(&whole(&nines).digits()));
        assert!((whole(&nines).to_f64() - 1e60).abs() < 1e45);
    }
}
