//! The fields of an object in the order of protobuf, with the structs that JSON inlines as messages of their own.

use crate::types::Object;

/// A message's entries, ascending by number.
#[derive(Debug, Default)]
pub struct Layout(pub(super) Vec<Entry>);

#[derive(Debug)]
pub(super) struct Entry {
    pub(super) tag: u32,
    pub(super) what: What,
}

#[derive(Debug)]
pub(super) enum What {
    /// Position in [`Object::fields`].
    Field(usize),
    /// A message whose fields JSON shows in the parent.
    Inline(Layout),
}

impl Layout {
    pub(super) fn of(object: &Object) -> &Layout {
        object.proto_layout.get_or_init(|| {
            let mut layout = Layout::default();
            for (i, f) in object.fields.iter().enumerate() {
                if f.tag != 0 {
                    layout.message(&f.inline_tags).0.push(Entry { tag: f.tag, what: What::Field(i) });
                }
            }
            layout.sort();
            layout
        })
    }

    /// The message that a path of tags leads to.
    fn message(&mut self, path: &[u32]) -> &mut Layout {
        let Some((tag, rest)) = path.split_first() else { return self };
        let at = self.0.iter().position(|e| e.tag == *tag && matches!(e.what, What::Inline(_))).unwrap_or_else(|| {
            self.0.push(Entry { tag: *tag, what: What::Inline(Layout::default()) });
            self.0.len() - 1
        });
        match &mut self.0[at].what {
            What::Inline(inner) => inner.message(rest),
            What::Field(_) => unreachable!("the position is that of an inlined message"),
        }
    }

    fn sort(&mut self) {
        self.0.sort_by_key(|e| e.tag);
        for e in &mut self.0 {
            if let What::Inline(inner) = &mut e.what {
                inner.sort();
            }
        }
    }

    pub(super) fn find(&self, tag: u64) -> Option<&What> {
        let tag = u32::try_from(tag).ok()?;
        self.0.binary_search_by_key(&tag, |e| e.tag).ok().map(|i| &self.0[i].what)
    }
}
