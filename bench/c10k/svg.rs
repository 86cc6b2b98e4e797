//! Latency by percentile as an SVG plot.
//!
//! The horizontal axis is that of HdrHistogram's plotters, logarithmic in 1/(1-percentile): every further nine has the same
//! width. The vertical axis is linear and begins at 0, so that heights can be compared.

use std::fmt::{self, Write};

/// Most lines per plot: more colours cannot be told apart.
pub const LINES_MAX: usize = 8;
/// Fewest and most nines on the horizontal axis: 99.99 % and 99.9999 %.
const NINES: (f64, f64) = (4.0, 6.0);
/// Tolerance for rounded quantiles; a hundredth of a nine is invisible.
const NINES_ERROR: f64 = 0.01;
/// Width and height in pixels.
const SIZE: (f64, f64) = (960.0, 560.0);
/// Edges of the plot area.
const LEFT: f64 = 80.0;
const RIGHT: f64 = 920.0;
const TOP: f64 = 104.0;
const BOTTOM: f64 = 500.0;
/// Most steps of the vertical axis.
const STEPS_MAX: f64 = 8.0;
/// Characters per line of the notes, and most lines; the rest is cut.
const NOTE_CHARS: usize = 128;
const NOTES_MAX: usize = 3;
/// Approximate width of a character in the legend, in pixels.
const LEGEND_CHAR: f64 = 7.4;
/// Okabe and Ito's colours, which colour-blind readers can tell apart.
///
/// Yellow is left out, because it is too light on white.
const COLOURS: [&str; LINES_MAX] =
    ["#0072b2", "#d55e00", "#009e73", "#cc79a7", "#56b4e9", "#e69f00", "#000000", "#7f7f7f"];

/// One line of a plot.
#[derive(Clone, Debug, PartialEq)]
pub struct Line {
    pub name: String,
    /// Quantile in [0, 1) and latency in milliseconds; neither ever falls.
    pub points: Vec<(f64, f64)>,
}

/// Renders a plot.
///
/// Notes stand below the title, cut to a few lines. Lines past [`LINES_MAX`] reuse colours.
pub fn render(title: &str, notes: &[&str], lines: &[Line]) -> String {
    let mut out = String::new();
    // Writing to a String cannot fail.
    let _ = write(title, notes, lines, &mut out);
    out
}

/// Ranges of both axes.
struct Scale {
    nines: f64,
    top_ms: f64,
    step_ms: f64,
}

impl Scale {
    fn of(lines: &[Line]) -> Scale {
        let points = || lines.iter().flat_map(|line| &line.points);
        let nines = points().map(|&(quantile, _)| nines(quantile)).fold(NINES.0, f64::max);
        let highest_ms = points().map(|&(_, ms)| ms).fold(0.0, f64::max);
        let step_ms = nice_step(highest_ms);
        let top_ms = (highest_ms / step_ms).ceil().max(1.0) * step_ms;
        Scale { nines: (nines - NINES_ERROR).ceil().min(NINES.1), top_ms, step_ms }
    }

    fn x(&self, quantile: f64) -> f64 {
        LEFT + (RIGHT - LEFT) * (nines(quantile) / self.nines)
    }

    fn y(&self, ms: f64) -> f64 {
        BOTTOM - (BOTTOM - TOP) * (ms / self.top_ms)
    }
}

/// Number of nines of a quantile: 0.9 has one.
fn nines(quantile: f64) -> f64 {
    -(1.0 - quantile).log10()
}

/// The smallest step of 1, 2 or 5 times a power of ten that reaches `highest` in [`STEPS_MAX`] steps.
fn nice_step(highest: f64) -> f64 {
    if highest <= 0.0 {
        return 1.0;
    }
    let decade = 10_f64.powf((highest / STEPS_MAX).log10().floor());
    let steps = [1.0, 2.0, 5.0, 10.0].map(|factor| factor * decade);
    steps.into_iter().find(|step| highest / step <= STEPS_MAX).unwrap_or(10.0 * decade)
}

fn write(title: &str, notes: &[&str], lines: &[Line], out: &mut String) -> fmt::Result {
    let scale = Scale::of(lines);
    let (width, height) = SIZE;
    writeln!(
        out,
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{width}\" height=\"{height}\" \
         viewBox=\"0 0 {width} {height}\" font-family=\"Helvetica, Arial, sans-serif\" font-size=\"13\" \
         fill=\"#222\">\n<title>{}</title>\n<rect width=\"{width}\" height=\"{height}\" fill=\"#fff\"/>\n\
         <text x=\"{LEFT}\" y=\"32\" font-size=\"17\" font-weight=\"bold\">{}</text>",
        escaped(title),
        escaped(title)
    )?;
    let wrapped = notes.iter().flat_map(|note| wrapped(note));
    for (at, line) in wrapped.take(NOTES_MAX).enumerate() {
        let y = 52 + 16 * at;
        writeln!(
            out,
            "<text x=\"{LEFT}\" y=\"{y}\" font-size=\"10.5\" font-family=\"Menlo, Consolas, monospace\" \
             fill=\"#555\" xml:space=\"preserve\">{}</text>",
            escaped(&line)
        )?;
    }
    write_axes(&scale, out)?;
    for (at, line) in lines.iter().enumerate() {
        write_line(&scale, at, line, out)?;
    }
    write_legend(lines, out)?;
    out.write_str("</svg>\n")
}

/// Wraps a note into lines, at blanks if possible.
fn wrapped(note: &str) -> Vec<String> {
    let (mut lines, mut line, mut used) = (Vec::new(), String::new(), 0);
    for word in note.split_inclusive(' ') {
        let characters: Vec<char> = word.chars().collect();
        for piece in characters.chunks(NOTE_CHARS) {
            if used + piece.len() > NOTE_CHARS {
                lines.push(std::mem::take(&mut line));
                used = 0;
            }
            line.extend(piece);
            used += piece.len();
        }
    }
    lines.push(line);
    lines
}

fn write_axes(scale: &Scale, out: &mut String) -> fmt::Result {
    let steps = (scale.top_ms / scale.step_ms).round() as usize;
    let decimals = (-scale.step_ms.log10().floor()).max(0.0) as usize;
    for step in 0..=steps {
        let ms = step as f64 * scale.step_ms;
        let y = scale.y(ms);
        writeln!(
            out,
            "<path d=\"M{LEFT} {y:.1}H{RIGHT}\" stroke=\"{}\"/><text x=\"{}\" y=\"{:.1}\" \
             text-anchor=\"end\">{ms:.decimals$}</text>",
            if step == 0 { "#222" } else { "#ddd" },
            LEFT - 8.0,
            y + 4.5
        )?;
    }
    for at in 0..=scale.nines as usize {
        let quantile = 1.0 - 10_f64.powi(-(at as i32));
        let x = scale.x(quantile);
        let label = match at {
            0 => "0 %".to_owned(),
            1 => "90 %".to_owned(),
            2 => "99 %".to_owned(),
            more => format!("99.{} %", "9".repeat(more - 2)),
        };
        writeln!(
            out,
            "<path d=\"M{x:.1} {TOP}V{BOTTOM}\" stroke=\"{}\"/><text x=\"{x:.1}\" y=\"{}\" \
             text-anchor=\"middle\">{label}</text>",
            if at == 0 { "#222" } else { "#ddd" },
            BOTTOM + 20.0
        )?;
    }
    let (middle_x, middle_y) = ((LEFT + RIGHT) / 2.0, (TOP + BOTTOM) / 2.0);
    writeln!(
        out,
        "<text x=\"{middle_x}\" y=\"{}\" text-anchor=\"middle\">percentile</text>\n\
         <text x=\"22\" y=\"{middle_y}\" text-anchor=\"middle\" transform=\"rotate(-90 22 {middle_y})\">latency, \
         ms</text>",
        BOTTOM + 44.0
    )
}

fn write_line(scale: &Scale, at: usize, line: &Line, out: &mut String) -> fmt::Result {
    let colour = COLOURS[at % LINES_MAX];
    // The axis ends at the last nine; rarer ticks are in the report.
    let shown = line.points.iter().filter(|(quantile, _)| nines(*quantile) <= scale.nines + NINES_ERROR);
    write!(
        out,
        "<polyline fill=\"none\" stroke=\"{colour}\" stroke-width=\"2\" stroke-linejoin=\"round\" points=\""
    )?;
    for &(quantile, ms) in shown {
        write!(out, "{:.1},{:.1} ", scale.x(quantile), scale.y(ms))?;
    }
    out.write_str("\"/>\n")
}

fn write_legend(lines: &[Line], out: &mut String) -> fmt::Result {
    let longest = lines.iter().map(|line| line.name.chars().count()).max().unwrap_or(0);
    let (x, y) = (LEFT + 12.0, TOP + 10.0);
    let (width, height) = (52.0 + longest as f64 * LEGEND_CHAR, 8.0 + 20.0 * lines.len() as f64);
    writeln!(
        out,
        "<rect x=\"{x}\" y=\"{y}\" width=\"{width:.0}\" height=\"{height}\" fill=\"#fff\" fill-opacity=\"0.85\" \
         stroke=\"#bbb\"/>"
    )?;
    for (at, line) in lines.iter().enumerate() {
        let (colour, middle) = (COLOURS[at % LINES_MAX], y + 14.0 + 20.0 * at as f64);
        writeln!(
            out,
            "<path d=\"M{} {middle}h24\" stroke=\"{colour}\" stroke-width=\"3\"/><text x=\"{}\" y=\"{}\">{}</text>",
            x + 10.0,
            x + 42.0,
            middle + 4.5,
            escaped(&line.name)
        )?;
    }
    Ok(())
}

/// Escapes text for XML 1.0; control characters, which it cannot express, become U+FFFD.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for character in text.chars() {
        match character {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            control if control.is_control() => out.push('\u{fffd}'),
            other => out.push(other),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    fn line(name: &str, points: &[(f64, f64)]) -> Line {
        Line { name: name.into(), points: points.to_vec() }
    }

    #[test]
    fn nines_have_equal_width_and_heights_begin_at_zero() {
        let text = render("t", &[], &[line("a", &[(0.0, 0.0), (0.9, 2.0), (0.99, 4.0), (0.9999, 8.0)])]);
        // 840 pixels for four nines, 396 for 8 ms.
        assert!(text.contains("points=\"80.0,500.0 290.0,401.0 500.0,302.0 920.0,104.0 \""), "{text}");
        for label in [">0 %<", ">90 %<", ">99 %<", ">99.9 %<", ">99.99 %<", ">latency, ms<", ">percentile<"] {
            assert!(text.contains(label), "{label}");
        }
        assert!(!text.contains("99.999 %"));
    }

    #[test]
    fn each_line_has_its_own_colour_and_legend() {
        let points = [(0.0, 0.1), (0.999999, 3.0)];
        let text = render("t", &["note"], &[line("corrected", &points), line("uncorrected", &points)]);
        assert_eq!(text.matches("<polyline").count(), 2);
        for part in [">corrected<", ">uncorrected<", ">note<", ">99.9999 %<"] {
            assert_eq!(text.matches(part).count(), 1, "{part}");
        }
        assert_eq!(text.matches(COLOURS[0]).count(), 2);
        assert_eq!(text.matches(COLOURS[1]).count(), 2);
    }

    #[test]
    fn names_cannot_break_the_markup() {
        let name = "<a & \"b\">\u{1b}";
        let text = render(name, &[name], &[line(name, &[(0.0, f64::from(1u8))])]);
        assert_eq!(text.matches("&lt;a &amp; &quot;b&quot;&gt;\u{fffd}").count(), 4);
        assert!(!text.contains("<a &") && !text.contains('\u{1b}'));
        let long = "x".repeat(10 * NOTE_CHARS);
        assert_eq!(render("t", &[&long], &[]).matches(&"x".repeat(NOTE_CHARS)).count(), NOTES_MAX);
    }

    #[test]
    fn notes_break_between_words() {
        let word = "w".repeat(NOTE_CHARS / 2);
        let lines = wrapped(&format!("{word} {word} {word}"));
        assert_eq!(lines, [format!("{word} "), format!("{word} "), word]);
        assert_eq!(wrapped(&"w".repeat(2 * NOTE_CHARS)).len(), 2);
    }

    #[test]
    fn an_empty_histogram_is_a_plot_without_a_line() {
        let text = render("t", &[], &[line("a", &[]), line("b", &[(0.0, 0.0)])]);
        assert!(text.ends_with("</svg>\n") && !text.contains("NaN") && !text.contains("inf"), "{text}");
    }

    #[test]
    fn steps_are_one_two_or_five_times_a_power_of_ten() {
        for (highest, step) in [(8.0, 1.0), (8.1, 2.0), (17.0, 5.0), (41.0, 10.0), (0.03, 0.005), (0.0, 1.0)]
        {
            assert!((nice_step(highest) - step).abs() < 1e-9, "{highest}: {}", nice_step(highest));
        }
    }
}
