//! Resource quantities: `100m`, `1Gi`, `1e3` (`apimachinery/pkg/api/resource`).
//!
//! Invariants: arithmetic is exact within [`MAX_DIGITS`] digits, at any scale; amounts finer than a nano are rounded up, away from
//! zero, when parsed; a quantity that was written canonically keeps its text.

use crate::whole::Whole;
use std::cmp::Ordering;
use std::fmt;

const NANO: i32 = -9;
/// The most digits for which upstream takes its fast path, which decides whether text is kept.
const FAST_DIGITS: i32 = 18;
/// More digits than that are refused, and dropped from sums of amounts that are so far apart: what reading and adding takes grows
/// with the square of their number.
const MAX_DIGITS: usize = 100_000;
/// Larger exponents are refused, so that no sum of an exponent and a number of digits is too large.
const MAX_EXPONENT: i32 = i32::MAX - 1024;

/// The family of suffixes in which a quantity is written.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Format {
    /// `12e6`
    DecimalExponent,
    /// `12Mi`
    BinarySi,
    /// `12M`
    #[default]
    DecimalSi,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QuantityError {
    #[error("quantities must match the regular expression '^([+-]?[0-9.]+)([eEinumkKMGTP]*[-+]?[0-9]*)$'")]
    Format,
    #[error("unable to parse numeric part of quantity")]
    Numeric,
    #[error("unable to parse quantity's suffix")]
    Suffix,
}

/// `value * 10^scale`.
#[derive(Clone, Debug, Default)]
pub struct Quantity {
    value: Whole,
    scale: i32,
    format: Format,
    /// As it was written, where that is canonical already.
    text: Option<Box<str>>,
}

struct Parts<'a> {
    negative: bool,
    /// Digits before and after the point; `num` without leading zeros.
    num: &'a str,
    denom: &'a str,
    /// Whether there was any digit or point at all.
    digits: bool,
    suffix: &'a str,
}

fn span(s: &str, ok: impl Fn(u8) -> bool) -> usize {
    s.bytes().position(|c| !ok(c)).unwrap_or(s.len())
}

fn split(s: &str) -> Result<Parts<'_>, QuantityError> {
    let digit = |c: u8| c.is_ascii_digit();
    let (negative, rest) = match s.as_bytes().first() {
        Some(b'-') => (true, &s[1..]),
        Some(b'+') => (false, &s[1..]),
        _ => (false, s),
    };
    let unpadded = rest.trim_start_matches('0');
    let (num, tail) = unpadded.split_at(span(unpadded, digit));
    let (denom, suffix) = match tail.strip_prefix('.') {
        Some(t) => t.split_at(span(t, digit)),
        None => ("", tail),
    };
    let letters = span(suffix, |c| b"eEinumkKMGTP".contains(&c));
    let after = &suffix[letters..];
    let after = after.strip_prefix(['-', '+']).unwrap_or(after);
    if !after.bytes().all(digit) {
        return Err(QuantityError::Format);
    }
    let num = if num.is_empty() { "0" } else { num };
    Ok(Parts { negative, num, denom, digits: rest.len() > suffix.len(), suffix })
}

/// `(base, exponent, family)` of a suffix.
fn interpret(suffix: &str) -> Option<(u32, i32, Format)> {
    let decimal = |e| Some((10, e, Format::DecimalSi));
    let binary = |e| Some((2, e, Format::BinarySi));
    match suffix {
        "" => decimal(0),
        "n" => decimal(-9),
        "u" => decimal(-6),
        "m" => decimal(-3),
        "k" => decimal(3),
        "M" => decimal(6),
        "G" => decimal(9),
        "T" => decimal(12),
        "P" => decimal(15),
        "E" => decimal(18),
        "Ki" => binary(10),
        "Mi" => binary(20),
        "Gi" => binary(30),
        "Ti" => binary(40),
        "Pi" => binary(50),
        "Ei" => binary(60),
        _ => {
            let n = suffix.strip_prefix(['e', 'E'])?;
            let n: i32 = n.parse().ok()?;
            (n <= MAX_EXPONENT).then_some((10, n, Format::DecimalExponent))
        }
    }
}

impl Quantity {
    /// `value` units.
    pub fn new(value: i64, format: Format) -> Self {
        Quantity { value: value.into(), scale: 0, format, text: None }
    }
    /// `value` thousandths.
    pub fn from_milli(value: i64, format: Format) -> Self {
        Quantity { value: value.into(), scale: -3, format, text: None }
    }

    pub fn parse(s: &str) -> Result<Self, QuantityError> {
        if s.is_empty() {
            return Err(QuantityError::Format);
        }
        let keep = |q: Quantity| Ok(Quantity { text: Some(s.into()), ..q });
        if s == "0" {
            return keep(Quantity::default());
        }
        let p = split(s)?;
        let (base, exponent, mut format) = interpret(p.suffix).ok_or(QuantityError::Suffix)?;
        let shifted = format!("{}{}", p.num, p.denom);
        if !p.digits && p.suffix.is_empty() {
            return Err(QuantityError::Numeric);
        }
        // Zeros at the end of many digits are only scale.
        let significant = if shifted.len() > 38 { shifted.trim_end_matches('0') } else { &shifted };
        if significant.len() > MAX_DIGITS {
            return Err(QuantityError::Numeric);
        }
        let zeros = i32::try_from(shifted.len() - significant.len()).map_err(|_| QuantityError::Numeric)?;
        let digits = match significant {
            "" => Whole::default(),
            some => Whole::parse(some).ok_or(QuantityError::Numeric)?,
        };
        let signed = |v: Whole| if p.negative { v.negated() } else { v };
        let fast = match format {
            Format::BinarySi => p.denom.is_empty() && 15 - p.num.len() as i32 - exponent * 3 / 10 > 0,
            _ => {
                FAST_DIGITS >= shifted.len() as i32
                    && exponent.checked_sub(p.denom.len() as i32).is_some_and(|s| s >= NANO)
            }
        };
        let mut scale = zeros - i32::try_from(p.denom.len()).map_err(|_| QuantityError::Numeric)?;
        let mut value = digits.clone();
        if base == 2 {
            value = value.times(&Whole::from(1i128 << exponent));
        } else {
            scale = scale.checked_add(exponent).ok_or(QuantityError::Numeric)?;
        }
        if fast {
            let q = Quantity { value: signed(value), scale, format, text: None };
            let canonical = match format {
                Format::BinarySi => digits.wrapping_i64() & 7 != 0,
                _ => scale % 3 == 0 && !shifted.ends_with("000") && !shifted.starts_with('0'),
            };
            return if canonical { keep(q) } else { Ok(q) };
        }
        if scale < NANO {
            value = value.scaled_down(scale.abs_diff(NANO)).0;
            scale = NANO;
        }
        let mut q = Quantity { value, scale, format, text: None };
        if format == Format::BinarySi {
            let max = Quantity::new(i64::MAX, format);
            if q > max {
                q = max;
            }
            if !q.is_zero() && q < Quantity::new(1, format) {
                format = Format::DecimalSi;
            }
        }
        Ok(Quantity { value: signed(q.value), format, ..q })
    }

    pub fn format(&self) -> Format {
        self.format
    }
    pub fn is_zero(&self) -> bool {
        self.value.is_zero()
    }
    /// -1, 0 or 1.
    pub fn sign(&self) -> i32 {
        self.value.sign()
    }

    /// In units of `10^scale`, rounded away from zero, saturating at the ends of i64.
    pub fn scaled_value(&self, scale: i32) -> i64 {
        let d = self.scale.saturating_sub(scale);
        if d < 0 {
            return self.value.scaled_down(d.unsigned_abs()).0.to_i64();
        }
        // Zeros beyond these do not matter.
        self.value.scaled_up(d.unsigned_abs().min(20)).to_i64()
    }
    /// Whole units, rounded up.
    pub fn value(&self) -> i64 {
        self.scaled_value(0)
    }
    /// Thousandths, rounded up.
    pub fn milli_value(&self) -> i64 {
        self.scaled_value(-3)
    }
    /// Whether upstream's validation takes it for a whole number: it looks at the thousandths, which overflow.
    pub fn is_whole_to_validation(&self) -> bool {
        let up = self.scale.saturating_add(3);
        let Some(up) = u32::try_from(up).ok() else { return self.milli_value() % 1000 == 0 };
        let thousandths = match self.format {
            // What is short is multiplied with care, and comes to nothing where it does not fit.
            Format::DecimalSi | Format::DecimalExponent if self.value.digits() <= FAST_DIGITS as u64 => {
                10i64.checked_pow(up).and_then(|m| self.value.to_i64().checked_mul(m)).unwrap_or_default()
            }
            _ => self.value.wrapping_i64().wrapping_mul(10i64.wrapping_pow(up)),
        };
        thousandths % 1000 == 0
    }
    /// The amount if it is a whole number that fits.
    pub fn as_i64(&self) -> Option<i64> {
        let v = self.value();
        (*self == Quantity::new(v, self.format)).then_some(v)
    }
    pub fn as_f64(&self) -> f64 {
        self.value.to_f64() * 10f64.powi(self.scale)
    }

    /// Rounds away from zero to a multiple of `10^scale`; says whether nothing was lost.
    pub fn round_up(&mut self, scale: i32) -> bool {
        if self.scale >= scale {
            return true;
        }
        let (v, exact) = self.value.scaled_down(scale.abs_diff(self.scale));
        (self.value, self.scale, self.text) = (v, scale, None);
        exact
    }

    /// Both values at one scale. Of amounts that are too far apart the finer one loses digits.
    fn aligned(a: &Self, b: &Self) -> (Whole, Whole, i32) {
        if a.is_zero() || b.is_zero() {
            let scale = if a.is_zero() { b.scale } else { a.scale };
            return (a.value.clone(), b.value.clone(), scale);
        }
        let (fine, coarse) = if a.scale <= b.scale { (a, b) } else { (b, a) };
        let apart = coarse.scale.abs_diff(fine.scale);
        let shift = apart.min(MAX_DIGITS as u32);
        let down = if apart > shift { fine.value.scaled_down(apart - shift).0 } else { fine.value.clone() };
        let (up, scale) = (coarse.value.scaled_up(shift), coarse.scale.saturating_sub_unsigned(shift));
        if a.scale <= b.scale { (down, up, scale) } else { (up, down, scale) }
    }

    /// A sum takes the family of its first nonzero part.
    pub fn add(&mut self, other: &Self) {
        if self.is_zero() {
            self.format = other.format;
        }
        let (a, b, scale) = Self::aligned(self, other);
        (self.value, self.scale, self.text) = (a.plus(&b), scale, None);
    }
    pub fn sub(&mut self, other: &Self) {
        let mut minus = other.clone();
        minus.value = minus.value.negated();
        self.add(&minus);
    }
    pub fn mul(&mut self, by: i64) {
        (self.value, self.text) = (self.value.times(&Whole::from(by)), None);
    }
    pub fn neg(&mut self) {
        (self.value, self.text) = (self.value.negated(), None);
    }

    /// The digits of the mantissa and an exponent that is a multiple of three.
    fn canonical_decimal(&self) -> (String, i32) {
        let text = self.value.to_string();
        let digits = text.trim_end_matches('0');
        let e = self.scale.saturating_add_unsigned((text.len() - digits.len()) as u32);
        let zeros = e.rem_euclid(3);
        (format!("{digits}{}", "0".repeat(zeros as usize)), e - zeros)
    }
}

impl fmt::Display for Quantity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(t) = &self.text {
            return f.write_str(t);
        }
        if self.is_zero() {
            return f.write_str("0");
        }
        let mut format = self.format;
        let mut whole = self.clone();
        if format == Format::BinarySi {
            let k = Quantity::new(1024, format);
            let small = *self < k && *self > Quantity::new(-1024, format);
            if small || !whole.round_up(0) {
                format = Format::DecimalSi;
            }
        }
        match format {
            Format::BinarySi => {
                let scale = whole.scale.max(0).unsigned_abs().min(MAX_DIGITS as u32);
                let (v, i) = whole.value.scaled_up(scale).without_factors(1024);
                write!(f, "{v}{}", ["", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei"].get(i).unwrap_or(&""))
            }
            Format::DecimalSi => {
                let (v, e) = self.canonical_decimal();
                let names = ["n", "u", "m", "", "k", "M", "G", "T", "P", "E"];
                let name = usize::try_from(e / 3 + 3).ok().and_then(|i| names.get(i)).unwrap_or(&"");
                write!(f, "{v}{name}")
            }
            Format::DecimalExponent => match self.canonical_decimal() {
                (v, 0) => f.write_str(&v),
                (v, e) => write!(f, "{v}e{e}"),
            },
        }
    }
}

impl PartialEq for Quantity {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}
impl Eq for Quantity {}
impl PartialOrd for Quantity {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Quantity {
    fn cmp(&self, other: &Self) -> Ordering {
        let signs = self.sign().cmp(&other.sign());
        let size = |q: &Self| q.value.digits() as i64 + i64::from(q.scale);
        // Sizes may be one too large each.
        match size(self) - size(other) {
            _ if signs.is_ne() => signs,
            2.. => self.sign().cmp(&0),
            ..=-2 => 0.cmp(&self.sign()),
            _ => {
                let (a, b, _) = Self::aligned(self, other);
                a.cmp(&b)
            }
        }
    }
}

impl std::str::FromStr for Quantity {
    type Err = QuantityError;
    fn from_str(s: &str) -> Result<Self, QuantityError> {
        Quantity::parse(s)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn q(s: &str) -> Quantity {
        Quantity::parse(s).unwrap_or_else(|e| panic!("{s}: {e}"))
    }

    #[test]
    fn canonical_text() {
        for (input, want) in [
            ("0", "0"),
            ("0n", "0"),
            ("0Mi", "0"),
            ("-0", "0"),
            ("100m", "100m"),
            ("0.1", "100m"),
            ("1.5", "1500m"),
            ("1000m", "1"),
            ("1000", "1k"),
            ("1500", "1500"),
            ("100M", "100M"),
            ("1024Ki", "1Mi"),
            ("64Mi", "64Mi"),
            ("1.5Gi", "1536Mi"),
            ("0.5Gi", "512Mi"),
            ("0.5Ki", "512"),
            ("1Ki", "1Ki"),
            ("1e3", "1e3"),
            ("1E3", "1E3"),
            ("100e3", "100e3"),
            ("1e4", "10e3"),
            ("0.1n", "1n"),
            ("1.1n", "2n"),
            ("-0.1n", "-1n"),
            ("0.001Ki", "1024m"),
            ("9223372036854775808Ki", "9223372036854775807"),
            ("12.00", "12"),
            ("+1", "+1"),
            ("1e-3", "1e-3"),
            ("8Ki", "8Ki"),
            ("128974848", "128974848"),
            ("129e6", "129e6"),
            ("123Mi", "123Mi"),
            ("1100000n", "1100u"),
            ("99999999999999999999999999999999999999e1", "999999999999999999999999999999999999990"),
            ("999999999999999999999999999999999999990", "999999999999999999999999999999999999990"),
            ("10e2147482000", "100e2147481999"),
            // More digits than machine integers have.
            ("1234567890123456789012345678901234567890123", "1234567890123456789012345678901234567890123"),
            ("-1234567890123456789012345678901234567890.5", "-1234567890123456789012345678901234567890500m"),
            ("0.00000000012345678901234567890123456789012345678901", "1n"),
            ("1234567890123456789012345678901234567890e3", "1234567890123456789012345678901234567890e3"),
            ("123456789012345678901234567890123456789012Ki", "9223372036854775807"),
            // There is no suffix for these zeros, and upstream writes none.
            ("1000000000000000000000", "1"),
        ] {
            assert_eq!(q(input).to_string(), want, "{input}");
        }
    }

    /// Amounts that are far apart are compared and added at once.
    #[test]
    fn exponents_cost_nothing() {
        let (huge, one) = (q("1e2147482000"), q("1"));
        assert_eq!((huge.cmp(&one), one.cmp(&huge)), (Ordering::Greater, Ordering::Less));
        assert!(q("-1e2147482000") < one);
        let mut sum = one;
        sum.add(&huge);
        assert!(sum >= huge);
        assert_eq!(huge.value(), i64::MAX);
        assert_eq!(q("1e-2147483648").to_string(), "1e-9");
        let full = "9".repeat(MAX_DIGITS);
        assert_eq!(q(&full), q(&full));
        assert_eq!(Quantity::parse(&format!("{full}1")).unwrap_err(), QuantityError::Numeric);
    }

    #[test]
    fn refused() {
        use QuantityError::*;
        for (input, want) in [
            ("", Format),
            ("abc", Format),
            ("1 ", Format),
            ("1.1.M", Format),
            ("1i", Suffix),
            ("1mi", Suffix),
            ("5e", Suffix),
            ("1e2147483647", Suffix),
        ] {
            assert_eq!(Quantity::parse(input).unwrap_err(), want, "{input}");
        }
    }

    #[test]
    fn arithmetic_and_order() {
        let mut a = q("100m");
        a.add(&q("1"));
        assert_eq!(a.to_string(), "1100m");
        a.sub(&q("0.1"));
        assert_eq!((a.to_string(), a.value(), a.milli_value()), ("1".into(), 1, 1000));
        let mut b = q("0");
        b.add(&q("1Gi"));
        b.add(&q("1Mi"));
        assert_eq!(b.to_string(), "1025Mi");
        assert!(q("1Gi") > q("1G") && q("1000m") == q("1") && q("-1") < q("0"));
        assert!(q("1e30") > q("1n") && q("1e50") > q("1e49"));
        assert_eq!(q("1500m").value(), 2);
        assert_eq!(q("-1500m").value(), -2);
        assert_eq!(q("1e30").value(), i64::MAX);
        assert_eq!((q("2").as_i64(), q("1.5").as_i64()), (Some(2), None));
        let long = "1234567890123456789012345678901234567890123";
        let mut sum = q(long);
        sum.add(&q("1"));
        assert_eq!(sum.to_string(), "1234567890123456789012345678901234567890124");
        assert!(sum > q(long) && q(long) < sum && q(&format!("-{long}")) < q("1"));
        sum.sub(&q(long));
        assert_eq!((sum.to_string(), sum == q("1")), ("1".into(), true));
        let mut binary = q("9223372036854775807Ki");
        binary.add(&q("9223372036854775807Ki"));
        assert_eq!(binary.to_string(), "18446744073709551614");
        let mut c = q("1.5u");
        assert!(!c.round_up(-3));
        assert_eq!(c.to_string(), "1m");
        let mut d = q("3");
        d.mul(-2);
        assert_eq!(d.to_string(), "-6");
    }
}
