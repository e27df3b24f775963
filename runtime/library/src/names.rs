//! Names of stacked parameters in weight files: each `*` (or `*+k`, which counts from k) stands for an index of one leading axis.

/// The names a stacked parameter has in a file, with the index of each on the leading axes, row-major; and the shape of one.
pub fn expand(name: &str, shape: &[i64]) -> (Vec<String>, Vec<i64>) {
    let mut names = vec![String::new()];
    let mut axis = 0;
    for (i, part) in name.split('.').enumerate() {
        let dot = if i > 0 { "." } else { "" };
        let start = part.strip_prefix('*').map(|rest| rest.strip_prefix('+').and_then(|k| k.parse::<i64>().ok()).unwrap_or(0));
        names = match start {
            Some(start) => {
                let n = shape.get(axis).copied().unwrap_or(0);
                axis += 1;
                names.iter().flat_map(|prefix| (0..n).map(move |k| format!("{prefix}{dot}{}", start + k))).collect()
            }
            None => names.into_iter().map(|prefix| format!("{prefix}{dot}{part}")).collect(),
        };
    }
    (names, shape[axis.min(shape.len())..].to_vec())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stars_count_leading_axes() {
        let (names, shape) = expand("m.*+3.e.*.w", &[2, 2, 5, 7]);
        assert_eq!(names, ["m.3.e.0.w", "m.3.e.1.w", "m.4.e.0.w", "m.4.e.1.w"]);
        assert_eq!(shape, [5, 7]);
        assert_eq!(expand("w", &[4]), (vec!["w".into()], vec![4]));
    }
}
