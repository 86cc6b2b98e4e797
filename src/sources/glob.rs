//! The globs of Redis, as PSUBSCRIBE has them: whether two of them match the same channel.

/// One part of a glob. It matches bytes: `?` is one byte of a longer character.
#[derive(Clone, Debug)]
enum Part {
    /// `*`: any number of any bytes.
    Any,
    /// One of these bytes.
    One(Box<[bool; 256]>),
}

impl Part {
    /// Whether it matches anything: `[]` does not.
    fn is_possible(&self) -> bool {
        match self {
            Part::Any => true,
            Part::One(bytes) => bytes.iter().any(|is_in| *is_in),
        }
    }
}

/// Whether some channel matches both globs. O(length of one * length of the other).
pub fn overlap(a: &str, b: &str) -> bool {
    let (a, b) = (parts(a), parts(b));
    // Whether the parts before `at` of `a` match a text that those before an index of `b` match: of the row before, and of this one.
    let mut row = vec![false; b.len() + 1];
    row[0] = true;
    advance_over_any(&mut row, &b);
    for part in &a {
        let mut next = vec![false; b.len() + 1];
        match part {
            Part::Any => {
                // Nothing, or whatever the other has next.
                let mut reached = false;
                for (at, was) in row.iter().enumerate() {
                    let comes_over =
                        at.checked_sub(1).and_then(|before| b.get(before)).is_none_or(Part::is_possible);
                    reached = *was || reached && comes_over;
                    next[at] = reached;
                }
            }
            Part::One(bytes) => {
                for (at, other) in b.iter().enumerate() {
                    match other {
                        Part::Any => next[at] |= row[at] && part.is_possible(),
                        Part::One(others) => {
                            next[at + 1] |=
                                row[at] && bytes.iter().zip(&**others).any(|(one, other)| *one && *other);
                        }
                    }
                }
            }
        }
        advance_over_any(&mut next, &b);
        row = next;
    }
    row.last().is_some_and(|&both| both)
}

/// A `*` may match nothing.
fn advance_over_any(row: &mut [bool], parts: &[Part]) {
    for (at, part) in parts.iter().enumerate() {
        if matches!(part, Part::Any) {
            row[at + 1] |= row[at];
        }
    }
}

/// The parts of a glob, as Redis reads it (`stringmatchlen`).
fn parts(glob: &str) -> Vec<Part> {
    let one = |is_in: &dyn Fn(u8) -> bool| Part::One(Box::new(std::array::from_fn(|byte| is_in(byte as u8))));
    let mut rest = glob.as_bytes();
    let mut parts = Vec::new();
    while let [first, after @ ..] = rest {
        rest = after;
        parts.push(match (first, after) {
            (b'*', _) => Part::Any,
            (b'?', _) => one(&|_| true),
            (b'[', _) => {
                let (set, after) = set(after);
                rest = after;
                Part::One(set)
            }
            (b'\\', [escaped, after @ ..]) => {
                rest = after;
                one(&|byte| byte == *escaped)
            }
            (literal, _) => one(&|byte| byte == *literal),
        });
    }
    parts
}

/// The bytes that a `[...]` matches, and what follows it. Without its end, it goes to the end of the glob.
fn set(glob: &[u8]) -> (Box<[bool; 256]>, &[u8]) {
    let (is_negated, mut rest) = match glob {
        [b'^', rest @ ..] => (true, rest),
        _ => (false, glob),
    };
    let mut set = Box::new([false; 256]);
    loop {
        match rest {
            [] => break,
            [b']', after @ ..] => {
                rest = after;
                break;
            }
            [b'\\', escaped, after @ ..] => {
                set[usize::from(*escaped)] = true;
                rest = after;
            }
            [from, b'-', to, after @ ..] => {
                let (from, to) = (from.min(to), from.max(to));
                (*from..=*to).for_each(|byte| set[usize::from(byte)] = true);
                rest = after;
            }
            [byte, after @ ..] => {
                set[usize::from(*byte)] = true;
                rest = after;
            }
        }
    }
    if is_negated {
        set.iter_mut().for_each(|is_in| *is_in = !*is_in);
    }
    (set, rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn globs_overlap_if_some_channel_matches_both() {
        for (a, b) in [
            ("md", "md"),
            ("md:*", "md:eu"),
            ("md:*", "*:eu"),
            ("md:*", "*"),
            ("*", ""),
            ("u:*:a*", "u:1*:*b"),
            ("m?", "*d"),
            ("[a-c]x", "[c-e]?"),
            ("[c-a]x", "bx"),
            ("[^a]", "b"),
            ("a\\*", "a[*]"),
            ("a\\", "a?"),
            ("[\\]]", "]"),
            ("[ab", "b"),
            ("k*t", "*ü*"),
            ("a*b?", "*b"),
        ] {
            assert!(overlap(a, b) && overlap(b, a), "{a} {b}");
        }
        for (a, b) in [
            ("md", "md:"),
            ("md:*", "md"),
            ("u:*:a", "u:*:b"),
            ("m?", "m"),
            ("m?", "mab"),
            ("[a-c]", "[d-f]"),
            ("[^a]", "a"),
            ("a\\*", "ab"),
            ("[]", "*"),
            ("*x*y", "*y*z"),
        ] {
            assert!(!overlap(a, b) && !overlap(b, a), "{a} {b}");
        }
    }
}
