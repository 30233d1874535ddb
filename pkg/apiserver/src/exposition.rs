//! Prometheus' text format 0.0.4, as upstream's `/metrics` has it.

use std::borrow::Cow;
use std::fmt::Write as _;

/// A page that is written.
#[derive(Default)]
pub struct Page(String);

/// The values of one metric.
pub struct Family<'a> {
    page: &'a mut String,
    name: String,
}

impl Page {
    /// Begins a metric. `kind`: counter, gauge, histogram or summary.
    pub fn family(&mut self, name: &str, help: &str, kind: &str) -> Family<'_> {
        // Writing into a string does not fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
        Family { page: &mut self.0, name: name.to_owned() }
    }

    pub fn finish(self) -> String {
        self.0
    }
}

impl Family<'_> {
    pub fn value(&mut self, labels: &[(&str, &str)], value: f64) {
        self.line("", labels, None, value);
    }

    /// `counts`: one for each bound, and one for what is above; not cumulative.
    pub fn histogram(&mut self, labels: &[(&str, &str)], bounds: &[f64], counts: &[u64], sum: f64) {
        let mut below = 0;
        for (i, count) in counts.iter().enumerate() {
            below += count;
            let bound = bounds.get(i).map_or_else(|| "+Inf".to_owned(), |b| number(*b));
            self.line("_bucket", labels, Some(&bound), below as f64);
        }
        self.line("_sum", labels, None, sum);
        self.line("_count", labels, None, below as f64);
    }

    pub fn summary(&mut self, labels: &[(&str, &str)], quantiles: &[(f64, f64)], sum: f64, count: u64) {
        for (quantile, value) in quantiles {
            let quantile = number(*quantile);
            let all: Vec<(&str, &str)> = labels.iter().copied().chain([("quantile", quantile.as_str())]).collect();
            self.line("", &all, None, *value);
        }
        self.line("_sum", labels, None, sum);
        self.line("_count", labels, None, count as f64);
    }

    fn line(&mut self, suffix: &str, labels: &[(&str, &str)], bound: Option<&str>, value: f64) {
        self.page.push_str(&self.name);
        self.page.push_str(suffix);
        let all = labels.iter().copied().chain(bound.map(|b| ("le", b)));
        for (i, (key, value)) in all.enumerate() {
            self.page.push(if i == 0 { '{' } else { ',' });
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.page, "{key}=\"{value}\"");
        }
        if !labels.is_empty() || bound.is_some() {
            self.page.push('}');
        }
        let _ = writeln!(self.page, " {}", number(value));
    }
}

/// As Go's `%g` has it: small and large ones with an exponent of two digits.
fn number(value: f64) -> String {
    let text = format!("{value:e}");
    let Some((digits, exponent)) = text.split_once('e').filter(|_| value.is_finite()) else { return value.to_string() };
    match exponent.parse::<i32>() {
        Ok(-4..=5) | Err(_) => value.to_string(),
        Ok(large @ 6..) => format!("{digits}e+{large:0>2}"),
        Ok(small) => format!("{digits}e-{:0>2}", small.unsigned_abs()),
    }
}

/// Counters whose names have no `_total` at their end, against the rule.
const WITHOUT_TOTAL: [&str; 2] = ["authenticated_user_requests", "authentication_attempts"];

/// A page of OpenMetrics in the older format: there, a counter's own name is that of its values.
pub fn older(text: &str) -> String {
    let mut out = String::with_capacity(text.len() + text.len() / 8);
    // What stands before a family is known only once its type is.
    let mut help = None;
    let mut odd = None;
    for line in text.lines() {
        if let Some(rest) = line.strip_prefix("# HELP ") {
            help = rest.split_once(' ');
            continue;
        }
        if let Some((name, kind)) = line.strip_prefix("# TYPE ").and_then(|rest| rest.split_once(' ')) {
            odd = WITHOUT_TOTAL.into_iter().find(|n| *n == name);
            let total = if kind == "counter" && odd.is_none() { "_total" } else { "" };
            if let Some((_, help)) = help.take().filter(|(of, _)| *of == name) {
                let _ = writeln!(out, "# HELP {name}{total} {help}");
            }
            let _ = writeln!(out, "# TYPE {name}{total} {kind}");
            continue;
        }
        if line.starts_with('#') {
            continue;
        }
        let line = odd.map_or_else(|| line.into(), |name| line.replacen(&format!("{name}_total"), name, 1));
        out.push_str(&shorter(&line));
        out.push('\n');
    }
    out
}

/// The bound of a bucket as Go writes it: `1` for `1.0`, `1e+06` for `1000000.0`.
fn shorter(line: &str) -> Cow<'_, str> {
    let Some((before, (bound, after))) =
        line.split_once("le=\"").and_then(|(b, rest)| Some((b, rest.split_once('"')?)))
    else {
        return line.into();
    };
    match bound.parse::<f64>() {
        Ok(value) if value.is_finite() => format!("{before}le=\"{}\"{after}", number(value)).into(),
        _ => line.into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn open_metrics_become_the_older_format() {
        let text = "# HELP a A.\n# TYPE a counter\na_total{x=\"y\"} 3\n# HELP authentication_attempts B.\n\
            # TYPE authentication_attempts counter\nauthentication_attempts_total{result=\"success\"} 1\n\
            # HELP h H.\n# TYPE h histogram\nh_sum 2.5\nh_count 3\nh_bucket{le=\"1.0\"} 1\nh_bucket{le=\"1000000.0\",a=\"b\"} 2\n\
            h_bucket{le=\"5e-7\"} 2\nh_bucket{le=\"0.001\"} 2\nh_bucket{le=\"+Inf\"} 3\n# EOF\n";
        let want = "# HELP a_total A.\n# TYPE a_total counter\na_total{x=\"y\"} 3\n# HELP authentication_attempts B.\n\
            # TYPE authentication_attempts counter\nauthentication_attempts{result=\"success\"} 1\n\
            # HELP h H.\n# TYPE h histogram\nh_sum 2.5\nh_count 3\nh_bucket{le=\"1\"} 1\nh_bucket{le=\"1e+06\",a=\"b\"} 2\n\
            h_bucket{le=\"5e-07\"} 2\nh_bucket{le=\"0.001\"} 2\nh_bucket{le=\"+Inf\"} 3\n";
        assert_eq!(older(text), want);
    }

    #[test]
    fn numbers() {
        for (value, want) in [
            (0.0, "0"),
            (2.5, "2.5"),
            (0.0000005, "5e-07"),
            (1.25e-11, "1.25e-11"),
            (f64::NAN, "NaN"),
            (1234567.0, "1.234567e+06"),
            (123456.5, "123456.5"),
        ] {
            assert_eq!(number(value), want);
        }
    }

    #[test]
    fn a_page() {
        let mut page = Page::default();
        page.family("a_total", "How many.", "counter").value(&[("x", "1\"2")], 3.0);
        page.family("b", "How long.", "histogram").histogram(&[], &[0.5, 1.0], &[1, 0, 2], 7.5);
        page.family("c", "How much.", "summary").summary(&[("x", "1")], &[(0.5, 2.0)], 4.0, 2);
        let want = "# HELP a_total How many.\n# TYPE a_total counter\na_total{x=\"1\\\"2\"} 3\n\
            # HELP b How long.\n# TYPE b histogram\nb_bucket{le=\"0.5\"} 1\nb_bucket{le=\"1\"} 1\n\
            b_bucket{le=\"+Inf\"} 3\nb_sum 7.5\nb_count 3\n\
            # HELP c How much.\n# TYPE c summary\nc{x=\"1\",quantile=\"0.5\"} 2\nc_sum{x=\"1\"} 4\nc_count{x=\"1\"} 2\n";
        assert_eq!(page.finish(), want);
    }
}
