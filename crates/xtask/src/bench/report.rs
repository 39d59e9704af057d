//! Medians, goals and tables.

use serde::Serialize;

use crate::say;

/// The median of the numbers; NaN without numbers.
pub(crate) fn median(numbers: impl Iterator<Item = f64>) -> f64 {
    quantile(&mut numbers.collect::<Vec<_>>(), 0.5)
}

/// The quantile `share` (0 to 1) of the numbers, interpolated; NaN without numbers.
pub(crate) fn quantile(numbers: &mut [f64], share: f64) -> f64 {
    numbers.sort_by(f64::total_cmp);
    let Some(last) = numbers.len().checked_sub(1) else { return f64::NAN };
    #[expect(clippy::cast_precision_loss, reason = "counts far below 2^52")]
    let place = share * last as f64;
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to last")]
    let (below, above) = (place.floor() as usize, place.ceil() as usize);
    numbers[below] + (numbers[above] - numbers[below]) * place.fract()
}

/// A measured number and its limit.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Goal {
    pub(crate) what: String,
    pub(crate) measured: f64,
    pub(crate) least: Option<f64>,
    pub(crate) most: Option<f64>,
    pub(crate) reached: bool,
}

impl Goal {
    pub(crate) fn at_least(what: impl Into<String>, measured: f64, least: f64) -> Self {
        Self {
            what: what.into(),
            measured,
            least: Some(least),
            most: None,
            reached: measured >= least,
        }
    }

    pub(crate) fn at_most(what: impl Into<String>, measured: f64, most: f64) -> Self {
        Self {
            what: what.into(),
            measured,
            least: None,
            most: Some(most),
            reached: measured <= most,
        }
    }
}

/// Prints the goals and whether they were reached.
pub(crate) fn goals(goals: &[Goal]) {
    for Goal { what, measured, least, most, reached } in goals {
        let bound = match (least, most) {
            (Some(least), _) => format!("at least {least}"),
            (None, Some(most)) => format!("at most {most}"),
            (None, None) => String::new(),
        };
        let result = if *reached { "reached" } else { "MISSED" };
        say::line(&format!("  {what:<56} {measured:>7.2}  {bound:<14} {result}"));
    }
}

/// A table with aligned columns: names left-aligned, numbers right-aligned.
#[derive(Debug)]
pub(crate) struct Table<const N: usize> {
    rows: Vec<[String; N]>,
}

impl<const N: usize> Table<N> {
    pub(crate) fn new(titles: [&str; N]) -> Self {
        Self { rows: vec![titles.map(str::to_owned)] }
    }

    pub(crate) fn row(&mut self, cells: [String; N]) {
        self.rows.push(cells);
    }

    pub(crate) fn print(&self) {
        let width = |column: usize| self.rows.iter().map(|row| row[column].chars().count()).max();
        for (n, row) in self.rows.iter().enumerate() {
            let cells = row.iter().enumerate().map(|(column, cell)| {
                let width = width(column).unwrap_or(0);
                if column == 0 { format!("  {cell:<width$}") } else { format!("  {cell:>width$}") }
            });
            let line: String = cells.collect();
            if n == 0 { say::aside(&line) } else { say::line(&line) }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_median_is_the_middle_whatever_the_order() {
        assert!((median([9.0, 1.0, 2.0].into_iter()) - 2.0).abs() < 1e-9);
        assert!((median([4.0, 1.0].into_iter()) - 2.5).abs() < 1e-9);
        assert!(median(std::iter::empty()).is_nan());
    }

    #[test]
    fn a_quantile_lies_between_its_neighbours() {
        let mut numbers: Vec<f64> = (0..=100).map(f64::from).collect();
        assert!((quantile(&mut numbers, 0.99) - 99.0).abs() < 1e-9);
        assert!((quantile(&mut numbers, 0.995) - 99.5).abs() < 1e-9);
    }
}
