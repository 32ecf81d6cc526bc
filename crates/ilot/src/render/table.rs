//! Columns that line up, colours or not.

use owo_colors::{OwoColorize, Style};

/// A table that is printed once it is complete.
#[derive(Debug, Default)]
pub(crate) struct Table {
    rows: Vec<Vec<Cell>>,
    right: Vec<usize>,
    indent: usize,
}

/// One field with its looks.
#[derive(Debug, Clone)]
pub(crate) struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    /// A field of one style.
    pub fn new(text: impl Into<String>, style: Style) -> Self {
        Self { text: text.into(), style }
    }
}

impl<T: Into<String>> From<T> for Cell {
    fn from(text: T) -> Self {
        Self::new(text, Style::new())
    }
}

impl Table {
    /// A table with a heading.
    pub fn new(heading: &[&str]) -> Self {
        let mut table = Self::default();
        table.row(heading.iter().map(|title| Cell::new(*title, Style::new().bold())));
        table
    }

    /// A table without one, moved in by some columns.
    pub fn plain(indent: usize) -> Self {
        Self { indent, ..Self::default() }
    }

    /// Aligns these columns to the right.
    pub fn right(mut self, columns: &[usize]) -> Self {
        self.right = columns.to_vec();
        self
    }

    /// Adds a row.
    pub fn row<C: Into<Cell>>(&mut self, cells: impl IntoIterator<Item = C>) {
        self.rows.push(cells.into_iter().map(Into::into).collect());
    }

    /// The lines, each with its end; no spaces at the end of a line.
    pub fn render(&self) -> String {
        let columns = self.rows.iter().map(Vec::len).max().unwrap_or(0);
        let width = |column: usize| {
            self.rows.iter().filter_map(|row| row.get(column)).map(|cell| cell.text.chars().count()).max().unwrap_or(0)
        };
        let widths: Vec<usize> = (0..columns).map(width).collect();
        let mut text = String::new();
        for row in &self.rows {
            let mut line = " ".repeat(self.indent);
            let mut gap = 0;
            for (column, cell) in row.iter().enumerate() {
                let space = widths[column] - cell.text.chars().count();
                if self.right.contains(&column) {
                    gap += space;
                }
                if !cell.text.is_empty() {
                    line.push_str(&" ".repeat(gap));
                    line.push_str(&cell.text.style(cell.style).to_string());
                    gap = 0;
                } else {
                    gap += widths[column] - space;
                }
                if !self.right.contains(&column) {
                    gap += space;
                }
                gap += 2;
            }
            text.push_str(&line);
            text.push('\n');
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_line_up_and_no_line_ends_in_spaces() {
        let mut table = Table::plain(2).right(&[1]);
        table.row(["name", "size", "state"]);
        table.row(["a", "1", "up"]);
        table.row(["long-name", "12345", ""]);
        table.row(["b", "", "down"]);
        let text = anstream::adapter::strip_str(&table.render()).to_string();
        assert_eq!(
            text,
            "  name        size  state\n  a              1  up\n  long-name  12345\n  b                 down\n"
        );
    }
}
