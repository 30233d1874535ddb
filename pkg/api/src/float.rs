//! Floats as Go writes them.

/// Go's `%v`: shortest digits, with an exponent from seven places on or below four zeros.
pub fn go_text(x: f64) -> String {
    if x != 0.0 && !(1e-4..1e6).contains(&x.abs()) { exponential(x, 2) } else { format!("{x}") }
}

/// As Go's JSON encoder writes it: shortest digits, with an exponent from 22 places on or below six zeros. Zero has no sign, as
/// one that has been read again has none.
pub fn go_json(x: f64) -> String {
    match x.abs() {
        0.0 => "0".to_owned(),
        1e-6..1e21 => format!("{x}"),
        _ => exponential(x, 1),
    }
}

fn exponential(x: f64, places: usize) -> String {
    let text = format!("{x:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, exponent) = exponent.strip_prefix('-').map_or(("+", exponent), |p| ("-", p));
    format!("{digits}e{sign}{exponent:0>places$}")
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What Go writes.
    #[test]
    fn as_go_writes_them() {
        for (x, json, text) in [
            (0.0, "0", "0"),
            (-0.0, "0", "-0"),
            (15.0, "15", "15"),
            (-1.5, "-1.5", "-1.5"),
            (100_000.0, "100000", "100000"),
            (1_000_000.0, "1000000", "1e+06"),
            (1_234_567.5, "1234567.5", "1.2345675e+06"),
            (9_223_372_036_854_775_808.0, "9223372036854776000", "9.223372036854776e+18"),
            (1e20, "100000000000000000000", "1e+20"),
            (1e21, "1e+21", "1e+21"),
            (1.5e300, "1.5e+300", "1.5e+300"),
            (0.0001, "0.0001", "0.0001"),
            (0.00001, "0.00001", "1e-05"),
            (0.000001, "0.000001", "1e-06"),
            (-2.5e-10, "-2.5e-10", "-2.5e-10"),
        ] {
            assert_eq!((go_json(x).as_str(), go_text(x).as_str()), (json, text));
        }
    }
}
