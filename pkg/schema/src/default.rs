//! Static defaults: what `Field::default` says.

use crate::types::Object;
use serde_json::Value;

/// Sets fields that are absent and have a default.
pub fn apply(value: &mut Value, object: &Object) {
    crate::walk::objects_mut(value, object, &mut |o, map| {
        for f in &o.fields {
            if let Some(d) = &f.default
                && !map.contains_key(&f.name)
            {
                map.insert(f.name.clone(), d.clone());
            }
        }
    });
}
