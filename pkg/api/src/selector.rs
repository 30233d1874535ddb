//! Label and field selectors: parsing, matching, and the text that upstream's errors give.
