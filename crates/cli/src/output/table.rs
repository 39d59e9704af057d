//! Tables whose columns line up, also with characters that are two cells wide.

use unicode_width::UnicodeWidthStr as _;

use super::text::one_line;
use super::{Paint, Tone};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// For text.
    Left,
    /// For numbers.
    Right,
}

#[derive(Debug, Clone)]
pub(crate) struct Cell {
    text: String,
    tone: Tone,
}

/// Rows under column titles. The last column is not padded.
#[derive(Debug)]
pub(crate) struct Table {
    columns: Vec<(&'static str, Side)>,
    rows: Vec<Vec<Cell>>,
}

const GAP: &str = "  ";

impl Cell {
    pub(crate) fn new(tone: Tone, text: impl AsRef<str>) -> Self {
        Self { text: one_line(text.as_ref()), tone }
    }

    /// A value, or `-` if there is none.
    pub(crate) fn optional(text: Option<&str>) -> Self {
        text.map_or_else(|| Self::new(Tone::Dim, "-"), Self::from)
    }
}

impl<T: AsRef<str>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(Tone::Plain, text)
    }
}

impl Table {
    pub(crate) fn new<const N: usize>(columns: [(&'static str, Side); N]) -> Self {
        Self { columns: columns.to_vec(), rows: Vec::new() }
    }

    /// Adds a row with a value for each column.
    pub(crate) fn row<const N: usize>(&mut self, cells: [Cell; N]) {
        self.rows.push(cells.into());
    }

    /// The table as lines, each with its line break.
    pub(crate) fn render(&self, paint: Paint) -> String {
        let titles: Vec<Cell> =
            self.columns.iter().map(|(title, _)| Cell::new(Tone::Dim, title)).collect();
        let lines = || std::iter::once(&titles).chain(&self.rows);
        let widths: Vec<usize> = (0..self.columns.len())
            .map(|n| lines().map(|cells| cells.get(n).map_or(0, width)).max().unwrap_or(0))
            .collect();
        let mut out = String::new();
        for cells in lines() {
            let mut line = String::new();
            for (n, cell) in cells.iter().enumerate() {
                let space = " ".repeat(widths[n].saturating_sub(width(cell)));
                let text = paint.text(cell.tone, &cell.text);
                let is_last = n + 1 == cells.len();
                line.push_str(if n > 0 { GAP } else { "" });
                match self.columns[n].1 {
                    Side::Right => line.extend([space.as_str(), &text]),
                    Side::Left if is_last => line.push_str(&text),
                    Side::Left => line.extend([text.as_str(), &space]),
                }
            }
            out.push_str(line.trim_end());
            out.push('\n');
        }
        out
    }
}

fn width(cell: &Cell) -> usize {
    cell.text.width()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_in_any_script() {
        let mut table =
            Table::new([("tenant", Side::Left), ("count", Side::Right), ("error", Side::Left)]);
        table.row(["acme".into(), "7".into(), "a long text that runs on".into()]);
        table.row(["日本".into(), "12345678".into(), Cell::optional(None)]);
        table.row(["two\nlines".into(), "1".into(), "\u{1b}[2J".into()]);
        insta::assert_snapshot!(table.render(Paint::Plain), @"
        tenant        count  error
        acme              7  a long text that runs on
        日本       12345678  -
        two⏎lines         1  ␛[2J
        ");
    }

    #[test]
    fn colours_do_not_move_columns() {
        let mut table = Table::new([("a", Side::Left), ("b", Side::Left)]);
        table.row([Cell::new(Tone::Bad, "x"), "y".into()]);
        table.row(["long".into(), "y".into()]);
        let text = table.render(Paint::Colours);
        assert!(text.contains("x\u{1b}[0m     y"), "{text:?}");
    }
}
