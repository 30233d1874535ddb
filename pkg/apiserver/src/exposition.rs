//! Prometheus' text format 0.0.4, as upstream's `/metrics` has it.

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

/// As Go writes it: small ones with an exponent of two digits.
fn number(value: f64) -> String {
    if value == 0.0 || value.abs() >= 1e-4 || !value.is_finite() {
        return value.to_string();
    }
    let text = format!("{value:e}");
    match text.split_once("e-") {
        Some((digits, exponent)) => format!("{digits}e-{exponent:0>2}"),
        None => text,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers() {
        for (value, want) in [(0.0, "0"), (2.5, "2.5"), (0.0000005, "5e-07"), (1.25e-11, "1.25e-11"), (f64::NAN, "NaN")]
        {
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
