//! Graphs as pictures: boxes in layers, edges downwards. In: what is drawn. Out: SVG text.
//!
//! A box stands one layer below the lowest of those it reads. Inside a layer boxes are ordered by the mean place of their readers and of
//! what they read, a few times up and down. # Source: Sugiyama, Tagawa and Toda, 1981.

use std::fmt::Write;

/// A graph to draw; boxes in topological order.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Picture {
    /// The boxes.
    pub boxes: Vec<Box>,
}

/// A box.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Box {
    /// Lines of text; the first is the heading.
    pub lines: Vec<String>,
    /// A class of the style sheet: `arg`, `op`, `layout`, `kernel`, `product`, `loop`.
    pub class: &'static str,
    /// The source line it stands for, `file:line`.
    pub origin: Option<String>,
    /// The boxes it reads.
    pub reads: Vec<usize>,
}

/// Sizes. # Units: pixels.
const CHAR: f64 = 6.2;
const LINE: f64 = 14.0;
const PADDING: f64 = 8.0;
const GAP: f64 = 14.0;
const LAYER_GAP: f64 = 34.0;
/// A layer that is wider goes on in another row.
const ROW: f64 = 1200.0;
/// Times that layers are ordered.
const SWEEPS: usize = 6;

impl Picture {
    /// The layers, from the top: box numbers from left to right.
    fn layers(&self) -> Vec<Vec<usize>> {
        let mut depth = vec![0; self.boxes.len()];
        for (i, b) in self.boxes.iter().enumerate() {
            depth[i] = b.reads.iter().map(|r| depth[*r] + 1).max().unwrap_or(0);
        }
        // What reads nothing stands just above its first reader.
        for i in 0..self.boxes.len() {
            if self.boxes[i].reads.is_empty() {
                let readers = self.boxes.iter().enumerate().filter(|(_, b)| b.reads.contains(&i));
                depth[i] = readers.map(|(j, _)| depth[j] - 1).min().unwrap_or(0);
            }
        }
        let mut layers = vec![Vec::new(); depth.iter().max().map_or(0, |d| d + 1)];
        depth.iter().enumerate().for_each(|(i, d)| layers[*d].push(i));
        let mut readers = vec![Vec::new(); self.boxes.len()];
        for (i, b) in self.boxes.iter().enumerate() {
            b.reads.iter().for_each(|r| readers[*r].push(i));
        }
        let mut place = vec![0.0; self.boxes.len()];
        let number = |layer: &[usize], place: &mut [f64]| {
            layer.iter().enumerate().for_each(|(k, i)| place[*i] = (k as f64 + 0.5) / layer.len() as f64);
        };
        layers.iter().for_each(|l| number(l, &mut place));
        for sweep in 0..SWEEPS {
            let order: Vec<usize> = if sweep % 2 == 0 { (0..layers.len()).collect() } else { (0..layers.len()).rev().collect() };
            for l in order {
                let mean = |i: usize| {
                    let near = if sweep % 2 == 0 { &self.boxes[i].reads } else { &readers[i] };
                    if near.is_empty() { place[i] } else { near.iter().map(|j| place[*j]).sum::<f64>() / near.len() as f64 }
                };
                let mut keyed: Vec<(f64, usize)> = layers[l].iter().map(|i| (mean(*i), *i)).collect();
                keyed.sort_by(|a, b| a.0.total_cmp(&b.0).then(a.1.cmp(&b.1)));
                layers[l] = keyed.into_iter().map(|(_, i)| i).collect();
                number(&layers[l], &mut place);
            }
        }
        layers
    }

    /// The picture as an SVG element.
    pub fn svg(&self) -> String {
        let layers = self.layers();
        let size = |b: &Box| {
            let longest = b.lines.iter().map(|l| l.chars().count()).max().unwrap_or(0) as f64;
            (longest * CHAR + 2.0 * PADDING, b.lines.len() as f64 * LINE + PADDING)
        };
        let sizes: Vec<(f64, f64)> = self.boxes.iter().map(size).collect();
        let across = |row: &[usize]| row.iter().map(|i| sizes[*i].0 + GAP).sum::<f64>();
        // The rows of each layer.
        let mut rows: Vec<Vec<Vec<usize>>> = Vec::new();
        for l in &layers {
            let mut wrapped: Vec<Vec<usize>> = vec![Vec::new()];
            for i in l {
                let last = wrapped.last_mut().expect("there is one");
                if !last.is_empty() && across(last) + sizes[*i].0 > ROW {
                    wrapped.push(vec![*i]);
                } else {
                    last.push(*i);
                }
            }
            rows.push(wrapped);
        }
        let width = rows.iter().flatten().map(|r| across(r)).fold(0.0, f64::max) + GAP;
        let (mut at, mut y) = (vec![(0.0, 0.0); self.boxes.len()], GAP);
        for layer in &rows {
            for row in layer {
                let mut x = (width - across(row)) / 2.0 + GAP / 2.0;
                for i in row {
                    at[*i] = (x, y);
                    x += sizes[*i].0 + GAP;
                }
                y += row.iter().map(|i| sizes[*i].1).fold(0.0, f64::max) + GAP;
            }
            y += LAYER_GAP - GAP;
        }
        let mut out = format!("<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {width:.0} {y:.0}\">\n");
        for (i, b) in self.boxes.iter().enumerate() {
            for r in &b.reads {
                let (x0, y0) = (at[*r].0 + sizes[*r].0 / 2.0, at[*r].1 + sizes[*r].1);
                let (x1, y1) = (at[i].0 + sizes[i].0 / 2.0, at[i].1);
                let middle = (y0 + y1) / 2.0;
                let _ = writeln!(
                    out,
                    "<path class=\"edge\" data-from=\"{r}\" data-to=\"{i}\" d=\"M{x0:.0} {y0:.0}C{x0:.0} {middle:.0} {x1:.0} {middle:.0} {x1:.0} {y1:.0}\"/>"
                );
            }
        }
        for (i, b) in self.boxes.iter().enumerate() {
            let ((x, y), (w, h)) = (at[i], sizes[i]);
            let origin = b.origin.as_deref().map(|o| format!(" data-origin=\"{}\"", escape(o))).unwrap_or_default();
            let _ = write!(
                out,
                "<g class=\"{}\" data-box=\"{i}\"{origin}><rect x=\"{x:.0}\" y=\"{y:.0}\" width=\"{w:.0}\" height=\"{h:.0}\" rx=\"4\"/>",
                b.class
            );
            for (k, line) in b.lines.iter().enumerate() {
                let (x, y) = (x + PADDING, y + (k as f64 + 1.0) * LINE);
                let class = if k == 0 { " class=\"head\"" } else { "" };
                let _ = write!(out, "<text{class} x=\"{x:.0}\" y=\"{y:.0}\">{}</text>", escape(line));
            }
            let _ = writeln!(out, "<title>{}</title></g>", escape(b.origin.as_deref().unwrap_or("")));
        }
        out + "</svg>\n"
    }
}

/// Text for XML.
pub fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn b(name: &str, reads: &[usize]) -> Box {
        Box { lines: vec![name.into()], class: "op", origin: None, reads: reads.to_vec() }
    }

    #[test]
    fn boxes_stand_below_what_they_read() {
        let p = Picture { boxes: vec![b("x", &[]), b("y", &[0]), b("w", &[]), b("z", &[1, 2]), b("v", &[0, 3])] };
        assert_eq!(p.layers(), [vec![0], vec![1, 2], vec![3], vec![4]]);
    }

    #[test]
    fn edges_that_cross_are_put_apart() {
        let p = Picture { boxes: vec![b("a", &[]), b("b", &[]), b("c", &[1]), b("d", &[0])] };
        assert_eq!(p.layers(), [vec![0, 1], vec![3, 2]]);
    }

    #[test]
    fn text_is_escaped() {
        let p = Picture { boxes: vec![b("a < b & \"c\"", &[])] };
        assert!(p.svg().contains("a &lt; b &amp; &quot;c&quot;"), "{}", p.svg());
    }
}
