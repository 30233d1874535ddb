//! What fits where: assignability of types, and what parameters come to stand for (`checker/types.go`).

use super::types::Type;
use std::collections::HashMap;
use std::sync::Arc;

/// What parameters stand for.
#[derive(Default)]
pub struct Substitutions {
    known: HashMap<Arc<str>, Type>,
    /// What stood there before each change of the assignment that is tried. To try it on a copy instead would take time by the
    /// square of an expression's calls.
    replaced: Vec<(Arc<str>, Option<Type>)>,
}

impl Substitutions {
    fn find(&self, t: &Type) -> Option<&Type> {
        match t {
            Type::Param(name) => self.known.get(name),
            _ => None,
        }
    }

    pub fn add(&mut self, param: Arc<str>, stands_for: Type) {
        let before = self.known.insert(param.clone(), stands_for);
        self.replaced.push((param, before));
    }

    /// Whether each of `from` can be given where the one of `to` is wanted; what that says of parameters is kept if so.
    pub fn assign(&mut self, from: &[Type], to: &[Type]) -> bool {
        self.replaced.clear();
        let fits = from.len() == to.len() && from.iter().zip(to).all(|(a, b)| self.is_assignable(a, b));
        while let Some((param, before)) = self.replaced.pop().filter(|_| !fits) {
            match before {
                Some(known) => self.known.insert(param, known),
                None => self.known.remove(&param),
            };
        }
        fits
    }

    fn is_assignable(&mut self, from: &Type, to: &Type) -> bool {
        if matches!(to, Type::Param(_)) {
            match self.stands_for(from, to) {
                (true, _) => return true,
                (false, true) => return false,
                _ => {}
            }
        }
        if matches!(from, Type::Param(_)) {
            return self.stands_for(to, from).0;
        }
        let open = |t: &Type| t.is_dyn() || *t == Type::Error;
        if open(from) || open(to) {
            return true;
        }
        match (from, to) {
            (Type::Null, other) | (other, Type::Null) => is_nullable(other),
            (Type::Wrapper(a), Type::Wrapper(b)) => a == b,
            (Type::Wrapper(a), b) | (b, Type::Wrapper(a)) => **a == *b,
            (Type::Type(_), Type::Type(_)) => true,
            (Type::Opaque(..) | Type::List(_) | Type::Map(..), _) => {
                let (a, b) = (from.parts(), to.parts());
                std::mem::discriminant(from) == std::mem::discriminant(to)
                    && from.name() == to.name()
                    && a.len() == b.len()
                    && a.into_iter().zip(b).all(|(a, b)| self.is_assignable(a, b))
            }
            _ => from == to,
        }
    }

    /// Whether the parameter can stand for `t`, and whether it stands for something already.
    fn stands_for(&mut self, t: &Type, param: &Type) -> (bool, bool) {
        let Type::Param(name) = param else { return (false, false) };
        if t == param {
            return (true, true);
        }
        if let Some(known) = self.known.get(name).cloned() {
            if *t == known {
                return (true, true);
            }
            if self.is_assignable(t, &known) {
                let general = most_general(t, &known).clone();
                if self.is_not_in(param, &general) {
                    self.add(name.clone(), general);
                }
                return (true, true);
            }
            return (false, true);
        }
        if self.is_not_in(param, t) {
            self.add(name.clone(), t.clone());
            return (true, false);
        }
        (false, false)
    }

    /// No type is a part of itself.
    fn is_not_in(&self, param: &Type, within: &Type) -> bool {
        if param == within {
            return false;
        }
        match within {
            Type::Param(_) => self.find(within).is_none_or(|known| self.is_not_in(param, known)),
            _ => within.parts().into_iter().all(|p| self.is_not_in(param, p)),
        }
    }

    /// The type with all that is known of its parameters; those that nothing is known of become dyn if they are `closed`.
    pub fn apply(&self, t: &Type, closed: bool) -> Type {
        if let Some(known) = self.find(t) {
            return self.apply(known, closed);
        }
        match t {
            Type::Param(_) if closed => Type::Dyn,
            Type::Opaque(name, parts) => {
                Type::Opaque(name.clone(), parts.iter().map(|p| self.apply(p, closed)).collect())
            }
            Type::List(item) => Type::list(self.apply(item, closed)),
            Type::Map(key, value) => Type::map(self.apply(key, closed), self.apply(value, closed)),
            Type::Type(Some(of)) => Type::Type(Some(Arc::new(self.apply(of, closed)))),
            _ => t.clone(),
        }
    }
}

fn is_nullable(t: &Type) -> bool {
    matches!(
        t,
        Type::Null
            | Type::Opaque(..)
            | Type::Object(_)
            | Type::Any
            | Type::Duration
            | Type::Timestamp
            | Type::Wrapper(_)
    )
}

/// Of two types that fit each other.
pub fn most_general<'a>(a: &'a Type, b: &'a Type) -> &'a Type {
    if is_equal_or_less_specific(a, b) { a } else { b }
}

fn is_equal_or_less_specific(a: &Type, b: &Type) -> bool {
    let open = |t: &Type| t.is_dyn() || matches!(t, Type::Param(_));
    if open(a) || open(b) {
        return open(a);
    }
    match (a, b) {
        (Type::Type(_), Type::Type(_)) => true,
        (Type::Opaque(..) | Type::List(_) | Type::Map(..), _) => {
            let (x, y) = (a.parts(), b.parts());
            std::mem::discriminant(a) == std::mem::discriminant(b)
                && a.name() == b.name()
                && x.len() == y.len()
                && x.into_iter().zip(y).all(|(x, y)| is_equal_or_less_specific(x, y))
        }
        (Type::Wrapper(x), y) => **x == *y || a == b,
        _ => a == b,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_fit_leaves_nothing_behind() {
        let param = |name: &str| Type::Param(name.into());
        let mut all = Substitutions::default();
        assert!(all.assign(&[Type::Int], &[param("a")]));
        // The first two fit, and would say something new of both parameters.
        let (from, to) = ([Type::Dyn, Type::Text, Type::Bool], [param("a"), param("b"), Type::Int]);
        assert!(!all.assign(&from, &to));
        assert_eq!((all.apply(&param("a"), false), all.apply(&param("b"), false)), (Type::Int, param("b")));
        assert!(all.assign(&from[..2], &to[..2]));
        assert_eq!((all.apply(&param("a"), false), all.apply(&param("b"), false)), (Type::Dyn, Type::Text));
    }
}
