//! How products begin and end: rows taken by index, several matrices, maps at each element, several results.

use super::{Matrix, OfCodes, Tiling};
use crate::{
    ir::{Expr, Mem, Units},
    kernels::build::Build,
};
use base::{DType, Dim};

fn is_narrow(dtype: DType) -> bool {
    matches!(dtype, DType::BF16 | DType::F16)
}

/// What is stored at an element.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Given {
    /// The product of this number.
    Product(usize),
    /// The map's next result.
    Map,
    /// What is there and the map's next result.
    Sum,
}

/// What else a map reads.
#[derive(Clone, Debug, PartialEq)]
pub enum Operand {
    /// A buffer of so many elements.
    Read(DType, Dim),
    /// What was where the result of this number goes.
    Replaced(usize),
}

/// How products begin and end.
pub struct Epilogue<'a> {
    /// If rows of x are taken by index: how many x has. Of ragged rows alone.
    pub taken: Option<Dim>,
    /// If operands are codes of e4m3. Further buffers after the matrices have the scales of rows and of each matrix's columns, as [`super::scales`] says;
    /// where rows are taken by index, those of the taken rows.
    pub codes: Option<OfCodes>,
    /// How many matrices each row is multiplied by. Their products have the same tiles.
    pub matrices: usize,
    /// What else the map reads.
    pub operands: Vec<Operand>,
    /// What is stored, and as what.
    pub results: Vec<(Given, DType)>,
    /// What is computed at an element; by units, the one mapped result at each column that a turn takes.
    pub map: Option<&'a dyn Fn(&mut Build, &Element) -> Vec<Expr>>,
    /// If columns of the one dense product are mapped with others. Tiles are of whole periods then.
    pub units: Option<Units>,
}

/// Where a map is.
pub struct Element {
    /// The products there, each rounded to the dtype; by units, the one at each column that a turn takes.
    pub products: Vec<Expr>,
    /// What else it may read.
    pub operands: Vec<Mem>,
    /// Its place in each axis of the batch, then the row and the column; of an element outside of the result, others that are inside. By units in place of
    /// the column that of the period, and the place in the first unit, of pairs the number of the pair.
    pub at: Vec<Expr>,
}

impl Epilogue<'_> {
    /// One product, stored as it is.
    pub(super) fn none(result: DType) -> Epilogue<'static> {
        let results = vec![(Given::Product(0), result)];
        Epilogue { taken: None, codes: None, matrices: 1, operands: Vec::new(), results, map: None, units: None }
    }
    /// Scratch of so many elements for the mapped results: where the sums were, if those are as many, else of their own, narrow if all are: two in a
    /// register.
    pub(super) fn hold(&self, b: &mut Build, sums: &[Mem], elems: i64) -> Vec<Mem> {
        let mapped: Vec<DType> =
            self.results.iter().filter(|(given, _)| !matches!(given, Given::Product(_))).map(|r| r.1).collect();
        if mapped.len() <= sums.len() {
            return sums.to_vec();
        }
        let narrow = mapped.iter().all(|d| is_narrow(*d));
        let hold = |(i, dtype): (usize, &DType)| match sums.get(i) {
            Some(sums) if !narrow => *sums,
            _ => b.scratch(&format!("y{i}"), if narrow { *dtype } else { dtype.accumulator() }, elems),
        };
        mapped.iter().enumerate().map(hold).collect()
    }
    /// Whether registers that hold the sums of tensor cores can hold mapped results of these dtypes too.
    pub fn fits(dtype: DType, matrices: usize, mapped: &[DType]) -> bool {
        let halves: usize = mapped.iter().map(|d| if is_narrow(*d) { 1 } else { 2 }).sum();
        let alike = mapped.len() <= matrices || mapped.iter().all(|d| is_narrow(*d));
        !(is_narrow(dtype) || dtype == DType::TF32) || alike && halves <= 2 * matrices
    }
    /// What is called so of matrix `i`.
    pub(super) fn name(&self, of: &str, i: usize) -> String {
        if self.matrices == 1 { of.to_string() } else { format!("{of}{i}") }
    }
    /// The buffers of what else the map reads, and of the results, of so many elements.
    pub(super) fn buffers(&self, b: &mut Build, of: &str, elems: &Dim) -> [Vec<Mem>; 2] {
        let mut read: Vec<Option<Mem>> = Vec::new();
        for operand in &self.operands {
            let count = read.iter().flatten().count();
            read.push(match operand {
                Operand::Read(dtype, elems) => Some(b.read(&format!("z{count}"), *dtype, elems.clone())),
                Operand::Replaced(_) => None,
            });
        }
        let mut result = |(i, (given, dtype)): (usize, &(Given, DType))| {
            let name = if self.results.len() == 1 { of.to_string() } else { format!("{of}{i}") };
            let matters = *given == Given::Sum || self.operands.contains(&Operand::Replaced(i));
            if matters { b.update(&name, *dtype, elems.clone()) } else { b.write(&name, *dtype, elems.clone()) }
        };
        let results: Vec<Mem> = self.results.iter().enumerate().map(&mut result).collect();
        let place = |(mem, operand): (Option<Mem>, &Operand)| match operand {
            Operand::Replaced(i) => results[*i],
            Operand::Read(..) => mem.expect("it was made above"),
        };
        [read.into_iter().zip(&self.operands).map(place).collect(), results]
    }
}

/// A tile whose sums are complete.
pub(super) struct Tile<'a> {
    /// Its sizes.
    pub t: Tiling,
    /// The sums of each product.
    pub sums: &'a [Mem],
    /// Where each mapped result is before it is stored.
    pub held: &'a [Mem],
    /// What the products are rounded to.
    pub dtype: DType,
    /// Its first row and column.
    pub at: [&'a Expr; 2],
    /// Where it is in the batch.
    pub batch: &'a [Expr],
    /// Where rows and columns end.
    pub extents: [Expr; 2],
    /// Whether every tile ends before that, along rows and along columns.
    pub whole: [bool; 2],
}

impl Tile<'_> {
    /// Where the element is that belongs to number `e` of the tile, by rows. Neighbours are there for neighbours: a place is moved inside along each axis by
    /// itself, and only where it may be outside.
    fn place(&self, b: &mut Build, e: &Expr) -> [Expr; 2] {
        let width = Expr::int(self.t.n);
        let by = [Expr::floor_div(e.clone(), width.clone()), Expr::rem(e.clone(), width)];
        let at: Vec<Expr> = self.at.into_iter().zip(by).map(|(first, by)| b.bind(first.clone() + by)).collect();
        [0, 1].map(|i| {
            let last = self.extents[i].clone() - Expr::int(1);
            if self.whole[i] { at[i].clone() } else { b.bind(Expr::minimum(at[i].clone(), last)) }
        })
    }
    /// Adds what the result holds to the first sums.
    pub fn add(&self, b: &mut Build, result: &Matrix) {
        let sums = self.sums[0];
        b.each(Expr::int(self.t.m * self.t.n), |b, e| {
            let within = self.place(b, &e);
            let old = b.bind(Expr::load(result.mem, result.place(&within, self.batch)));
            b.store(sums, e.clone(), Expr::load(sums, e) + old);
        });
    }
    /// Maps the sums, and stores the results.
    pub fn end(&self, b: &mut Build, epilogue: &Epilogue, operands: &[Mem], results: &[Matrix]) {
        let (sizes, held) = ([self.t.m, self.t.n], self.held);
        let stored = || results.iter().zip(&epilogue.results);
        let mut mapped: Vec<(&Matrix, bool)> = Vec::new();
        for (y, (given, _)) in stored() {
            match given {
                Given::Product(i) => y.copy(b, self.sums[*i], sizes, self.at, self.batch, true),
                Given::Map => mapped.push((y, false)),
                Given::Sum => mapped.push((y, true)),
            }
        }
        let Some(map) = epilogue.map else { return };
        if let Some(units) = epilogue.units {
            let [(y, adds)] = mapped[..] else { base::bug!("columns are mapped to one result") };
            self.map_units(b, units, &|b, element| map(b, element), operands, (y, adds));
            return y.copy(b, held[0], sizes, self.at, self.batch, true);
        }
        b.each(Expr::int(self.t.m * self.t.n), |b, e| {
            let products = self.sums.iter().map(|s| b.bind(Expr::load(*s, e.clone()).cast(self.dtype))).collect();
            let within = self.place(b, &e);
            let known: Vec<Expr> = self.batch.iter().chain(&within).cloned().collect();
            let values = map(b, &Element { products, operands: operands.to_vec(), at: known });
            let sum = |(v, (y, adds)): (Expr, &(&Matrix, bool))| {
                if *adds { Expr::load(y.mem, y.place(&within, self.batch)) + v } else { v }
            };
            let values: Vec<Expr> = values.into_iter().zip(&mapped).map(sum).collect();
            let values: Vec<Expr> = values.into_iter().map(|v| b.bind(v)).collect();
            for (value, held) in values.into_iter().zip(held) {
                b.store(*held, e.clone(), value);
            }
        });
        for ((y, _), held) in mapped.into_iter().zip(held) {
            y.copy(b, *held, sizes, self.at, self.batch, true);
        }
    }
    /// Maps columns with others of their period: a turn takes the same of each unit, and leaves the results where the sums were.
    fn map_units(
        &self,
        b: &mut Build,
        units: Units,
        map: &dyn Fn(&mut Build, &Element) -> Vec<Expr>,
        operands: &[Mem],
        (y, adds): (&Matrix, bool),
    ) {
        let (sums, across) = (self.sums[0], Expr::int(self.t.n / units.count() / units.together()));
        let [turns, period] = [units.turns(), units.period].map(Expr::int);
        b.each(Expr::int(self.t.m) * across.clone(), |b, e| {
            let place = |by: i64| Expr::in_unit(e.clone(), units, by);
            let products = units.taken().map(|by| b.bind(Expr::load(sums, place(by)).cast(self.dtype))).collect();
            let row = b.bind(self.at[0].clone() + Expr::floor_div(e.clone(), across.clone()));
            let first = b.bind(Expr::floor_div(self.at[1].clone(), period.clone()));
            let number = b.bind(first + Expr::floor_div(Expr::rem(e.clone(), across.clone()), turns.clone()));
            let within = |b: &mut Build, i: usize, at: &Expr, end: Expr| {
                if self.whole[i] { at.clone() } else { b.bind(Expr::minimum(at.clone(), end - Expr::int(1))) }
            };
            let row = within(b, 0, &row, self.extents[0].clone());
            let number = within(b, 1, &number, Expr::floor_div(self.extents[1].clone(), period.clone()));
            let turn = b.bind(Expr::rem(e.clone(), turns));
            let at = self.batch.iter().chain([&row, &number, &turn]).cloned().collect();
            let values = map(b, &Element { products, operands: operands.to_vec(), at });
            let column = if units.pairs { b.bind(turn * Expr::int(units.together())) } else { turn };
            let sum = |(by, v): (i64, Expr)| {
                let column = number.clone() * period.clone() + column.clone() + Expr::int(by);
                if adds { Expr::load(y.mem, y.place(&[row.clone(), column], self.batch)) + v } else { v }
            };
            let values: Vec<Expr> = units.taken().zip(values).map(sum).collect();
            let values: Vec<Expr> = values.into_iter().map(|v| b.bind(v)).collect();
            for (by, v) in units.taken().zip(values) {
                b.store(sums, place(by), v);
            }
        });
    }
}
