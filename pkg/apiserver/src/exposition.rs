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
    /// Begins a metric. `kind`: counter, gauge or histogram.
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
            let bound = bounds.get(i).map_or_else(|| "+Inf".to_owned(), f64::to_string);
            self.line("_bucket", labels, Some(&bound), below as f64);
        }
        self.line("_sum", labels, None, sum);
        self.line("_count", labels, None, below as f64);
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
        let _ = writeln!(self.page, " {value}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page() {
        let mut page = Page::default();
        page.family("a_total", "How many.", "counter").value(&[("x", "1\"2")], 3.0);
        page.family("b", "How long.", "histogram").histogram(&[], &[0.5, 1.0], &[1, 0, 2], 7.5);
        let want = "# HELP a_total How many.\n# TYPE a_total counter\na_total{x=\"1\\\"2\"} 3\n\
            # HELP b How long.\n# TYPE b histogram\nb_bucket{le=\"0.5\"} 1\nb_bucket{le=\"1\"} 1\n\
            b_bucket{le=\"+Inf\"} 3\nb_sum 7.5\nb_count 3\n";
        assert_eq!(page.finish(), want);
    }
}
