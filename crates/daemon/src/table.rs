//! Lists for people and programs: cells in columns, with two spaces between them.

/// The columns of a list that is shown row by row. They grow with what is shown, and never shrink.
#[derive(Debug, Clone)]
pub struct Table<const N: usize> {
    titles: [&'static str; N],
    widths: [usize; N],
}

impl<const N: usize> Table<N> {
    /// A list whose columns are called so; a unit belongs to its column's title.
    pub fn new(titles: [&'static str; N]) -> Self {
        Self { titles, widths: [0; N] }
    }

    /// The line of titles, over columns that are wide enough for it and for these rows, which come next.
    pub fn titles(&mut self, rows: &[[String; N]]) -> String {
        let titles = self.titles.map(str::to_owned);
        self.widen(std::slice::from_ref(&titles));
        self.widen(rows);
        self.line(&titles)
    }

    /// Rows as lines, in columns with those before.
    pub fn lines(&mut self, rows: &[[String; N]]) -> Vec<String> {
        self.widen(rows);
        rows.iter().map(|row| self.line(row)).collect()
    }

    fn widen(&mut self, rows: &[[String; N]]) {
        for (column, width) in self.widths.iter_mut().enumerate() {
            *width = rows.iter().map(|row| row[column].chars().count()).fold(*width, usize::max);
        }
    }

    fn line(&self, row: &[String; N]) -> String {
        let cells = row.iter().zip(&self.widths).map(|(cell, width)| format!("{cell:<width$}"));
        cells.collect::<Vec<_>>().join("  ").trim_end().to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_hold_their_titles_and_grow_with_their_rows() {
        let row = |one: &str, two: &str| [one.to_owned(), two.to_owned(), "x".to_owned()];
        let mut table = Table::new(["A", "LONG", "LAST"]);
        let first = [row("one", "é"), row("1", "")];
        assert_eq!(table.titles(&first), "A    LONG  LAST");
        assert_eq!(table.lines(&first), ["one  é     x", "1          x"]);
        assert_eq!(table.lines(&[row("three", "2")]), ["three  2     x"]);
        assert_eq!(Table::new(["A", "LONG", "LAST"]).lines(&first), ["one  é  x", "1       x"]);
    }
}
