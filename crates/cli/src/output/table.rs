//! Tables whose columns line up, also with characters that are two cells wide.

use unicode_width::UnicodeWidthStr as _;

use super::text::{count, one_line};
use super::{Paint, Tone};

#[derive(Debug, Clone)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
    side: Side,
}

/// The side on which the cells of a column line up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Side {
    /// For text.
    Left,
    /// For numbers.
    Right,
}

const GAP: &str = "  ";

impl Cell {
    pub(crate) fn new(tone: Tone, text: impl AsRef<str>) -> Self {
        Self { text: one_line(text.as_ref()), tone, side: Side::Left }
    }

    /// A value, or `-` if there is none.
    pub(crate) fn optional(text: Option<&str>) -> Self {
        text.map_or_else(|| Self::new(Tone::Dim, "-"), Self::from)
    }

    pub(crate) fn count(number: impl Into<i128>) -> Self {
        Self::from(count(number)).right()
    }

    /// The cell in a column of numbers.
    pub(crate) fn right(self) -> Self {
        Self { side: Side::Right, ..self }
    }

    pub(crate) fn tone(self, tone: Tone) -> Self {
        Self { tone, ..self }
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(Tone::Plain, text)
    }
}

/// Rows under column titles as lines, each with its line break. A title is on the side of the cell below
/// it. The last column is not padded.
pub(super) fn table<const N: usize>(
    titles: [&str; N],
    rows: impl IntoIterator<Item = [Cell; N]>,
    paint: Paint,
) -> String {
    let mut lines = vec![titles.map(|title| Cell::new(Tone::Dim, title))];
    lines.extend(rows);
    if let [titles, first, ..] = lines.as_mut_slice() {
        titles.iter_mut().zip(first).for_each(|(title, cell)| title.side = cell.side);
    }
    let width = |cell: &Cell| cell.text.width();
    let widths: [usize; N] =
        std::array::from_fn(|n| lines.iter().map(|cells| width(&cells[n])).max().unwrap_or(0));
    let mut out = String::new();
    for cells in &lines {
        let mut line = String::new();
        for (n, (cell, widest)) in cells.iter().zip(widths).enumerate() {
            let space = " ".repeat(widest.saturating_sub(width(cell)));
            let text = paint.text(cell.tone, &cell.text);
            line.push_str(if n > 0 { GAP } else { "" });
            match cell.side {
                Side::Right => line.extend([space, text]),
                Side::Left if n + 1 == N => line.push_str(&text),
                Side::Left => line.extend([text, space]),
            }
        }
        out.push_str(line.trim_end());
        out.push('\n');
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_in_any_script() {
        let rows = [
            ["acme".into(), Cell::count(7), "a long text that runs on".into()],
            ["日本".into(), Cell::from("12345678").right(), Cell::optional(None)],
            ["two\nlines".into(), Cell::count(1), "\u{1b}[2J".into()],
        ];
        insta::assert_snapshot!(table(["tenant", "count", "error"], rows, Paint::Plain), @"
        tenant        count  error
        acme              7  a long text that runs on
        日本       12345678  -
        two⏎lines         1  ␛[2J
        ");
    }

    #[test]
    fn colours_do_not_move_columns() {
        let rows = [[Cell::new(Tone::Bad, "x"), "y".into()], ["long".into(), "y".into()]];
        let text = table(["a", "b"], rows, Paint::Colours);
        assert!(text.contains("x\u{1b}[0m     y"), "{text:?}");
    }
}
