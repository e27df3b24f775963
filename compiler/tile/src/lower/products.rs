//! Regions of the form `product` as one kernel, for a device on which products are kernels: products of the same rows, dense or ragged with each
//! its group's matrices, and maps of them at each element, which may read others' values there. Rows of ragged products that are taken by index
//! inside come with their loads and are never stored; operands of dense ones that are widened inside are multiplied as they are (`narrow`); operands that are what
//! codes are worth are multiplied as codes (`codes`); what is joined inside along the summed axis of ragged ones is multiplied part by part. See `kernels::gpu_product::Epilogue`.

use super::{Body, Lowerer, is_aligned};
use crate::{
    cost,
    fused::constant,
    gemm::{Letters, gemm_of},
    group::is_layout,
    ir::{COPY_ALIGN, Expr, Units},
    kernels::{
        build::Build,
        gpu_product::{
            Element, Epilogue, Given, GivenScales, Grouped, OfCodes, Operand, Product, Tiling, gpu_grouped_map, gpu_product_map,
            gpu_scales, scales,
        },
    },
    view::StridedView,
};
use base::{DType, Dim, TensorType};
use graph::{
    Func, NodeId, Op, Value,
    op::{Contract, are_pairs, quantize::Block, terms_axis},
};
use library::{Class, Gemm, View, Work};

/// Columns of a product of codes, of which a block has whole ones.
const BLOCK_COLUMNS: i64 = Tiling::OF_BLOCKS[0].n;

/// Terms of codes that are multiplied at once.
const PIECE: i64 = Tiling::OF_CODES[0].k;

/// Matrices that the registers of a kernel have sums for.
const MOST_MATRICES: usize = 2;

/// A region that can be computed so.
#[derive(Clone, Debug)]
pub(crate) struct Products<'a> {
    func: &'a Func,
    products: Vec<NodeId>,
    kind: Kind<'a>,
    /// The argument that rows are of, or are taken from by the indices.
    x: Value,
    /// The arguments that they are multiplied by.
    matrices: Vec<Value>,
    /// Further rows and matrices, arguments, that lie behind those along the summed axis: of one product of ragged rows.
    further: Vec<[Value; 2]>,
    /// What the maps read beside the products: arguments.
    operands: Vec<Value>,
    /// If maps are of some columns with others: how these lie.
    units: Option<Units>,
    /// If rows and matrices are codes.
    codes: Option<Codes>,
}

/// What codes of a region's operands are worth.
#[derive(Clone, Debug)]
struct Codes {
    /// Terms of a block.
    block: i64,
    /// Columns of a block of the matrices.
    columns: i64,
    /// The arguments that scale rows, which are taken as rows are, and each matrix.
    scales: Vec<Value>,
}

/// What products of a region have in common beside their rows.
#[derive(Clone, Debug)]
enum Kind<'a> {
    /// The contraction; rows are its left operand.
    Dense(&'a Contract),
    /// The orientation of the matrices, and arguments: the indices that rows are taken by, and where groups begin.
    Ragged { transposed: bool, index: Option<Value>, offsets: Value },
}

/// How an operand of a product is an argument.
#[derive(Clone, Copy, PartialEq)]
enum Is {
    Given,
    /// As f32.
    Widened,
    /// What codes are worth, in blocks of so many.
    Coded(i64),
}

/// An operand that is what codes are worth, rounded for the product: arguments. In f32 they are multiplied as they are, as sums of codes have fewer bits.
struct Coded {
    block: Block,
    codes: Value,
    scales: Value,
    /// By which rows of both are taken.
    index: Option<Value>,
}

impl Coded {
    fn of(func: &Func, v: Value) -> Option<Coded> {
        let Op::Cast(DType::BF16 | DType::F16) = func.def(v).op else { return None };
        let below = func.def(v).inputs[0];
        let Op::Dequantize(block) = func.def(below).op else { return None };
        let is_arg = |v: &Value| matches!(func.def(*v).op, Op::Arg(_));
        let taken = |v: Value| match func.def(v) {
            node if matches!(node.op, Op::Gather { batch: 0 }) => (node.inputs[0], Some(node.inputs[1])),
            _ => (v, None),
        };
        let [(codes, index), (scales, of_scales)] = [0, 1].map(|i| taken(func.def(below).inputs[i]));
        let fits = index == of_scales && [codes, scales].iter().chain(&index).all(is_arg);
        fits.then_some(Coded { block, codes, scales, index })
    }
}

/// Whether an op takes some columns of a value, or joins columns of some.
fn is_of_columns(op: &Op, result: &TensorType) -> bool {
    match op {
        Op::Slice { axis, step, .. } => *axis + 1 == result.rank() && *step == 1,
        Op::Concat(axis) => *axis + 1 == result.rank(),
        _ => false,
    }
}

/// How the columns lie that are taken and joined of a dense product, if there is a kernel for it: operands of tensor cores, whose sums threads hold by pairs
/// of each eight columns, and tiles of whole periods.
fn units(func: &Func, products: &[NodeId], kind: &Kind) -> Option<Units> {
    let ([product], Kind::Dense(spec)) = (products, kind) else { return None };
    let ty = &func.nodes[*product].types[0];
    let columns = |axis: usize| ty.shape[axis].known().filter(|_| !spec.lhs.contains(&spec.out[axis]));
    let last = ty.rank().checked_sub(1)?;
    let splits = func.nodes.values().any(|n| matches!(n.op, Op::Reshape(_)));
    // Pairs have an axis of their own, or are such of an axis.
    let own = columns(last)? == 2 && last > 0;
    let period = if own { 2 * columns(last - 1)? } else { columns(last)? };
    let mut unit = period;
    for node in func.nodes.values().filter(|n| is_of_columns(&n.op, &n.types[0]) && n.types[0].rank() == ty.rank() && !own) {
        match &node.op {
            Op::Slice { start, len, .. } => [start, len].into_iter().try_for_each(|d| {
                unit = common(unit, d.known()?);
                Some(())
            })?,
            Op::Concat(axis) => node.inputs.iter().try_for_each(|v| {
                unit = common(unit, func.ty(*v).shape[*axis].known()?);
                Some(())
            })?,
            _ => {}
        }
    }
    let has_tiling = Tiling::LEGAL.iter().any(|t| t.n % period == 0);
    (unit % 8 == 0 && has_tiling && !(own && splits)).then_some(Units { unit, period, pairs: own || splits })
}

/// The greatest common divisor.
fn common(a: i64, b: i64) -> i64 {
    if b == 0 { a } else { common(b, a % b) }
}

impl<'a> Products<'a> {
    /// The region as one, if it is.
    pub(crate) fn of(region: &'a graph::op::Fused) -> Option<Products<'a>> {
        let func = &region.body;
        let arg = |v: Value| Some(v).filter(|v| matches!(func.def(*v).op, Op::Arg(_)));
        let products = func.nodes.iter().filter(|(_, n)| matches!(n.op, Op::Contract(_) | Op::GroupedContract { .. }));
        let products: Vec<NodeId> = products.map(|(id, _)| id).collect();
        let first = &func.nodes[*products.first()?];
        let (rows, ty) = (first.inputs[0], &first.types[0]);
        // An operand, and how it is what is multiplied.
        let operand = |v: Value| match (&first.op, &func.def(v).op) {
            (Op::Contract(_), Op::Cast(DType::F32)) => {
                let below = func.def(v).inputs[0];
                Some((arg(below).filter(|x| matches!(func.ty(*x).dtype, DType::TF32 | DType::BF16 | DType::F16))?, Is::Widened))
            }
            _ => match Coded::of(func, v) {
                // Rows by an index are those of ragged products.
                Some(coded) => Some((coded.codes, Is::Coded(coded.block.size))).filter(|_| coded.index.is_none()),
                None => Some((arg(v)?, Is::Given)),
            },
        };
        // Parts that are joined along an axis.
        let joined = |v: Value, axis: usize| match &func.def(v).op {
            Op::Concat(a) if *a == axis => func.def(v).inputs.iter().map(|p| arg(*p)).collect::<Option<Vec<Value>>>(),
            _ => None,
        };
        let mut further = Vec::new();
        let (kind, (x, is)) = match &first.op {
            Op::Contract(spec) => (Kind::Dense(spec), operand(rows)?),
            Op::GroupedContract { transposed } if products.len() == 1 && matches!(func.def(rows).op, Op::Concat(_)) => {
                let axis = terms_axis(*transposed);
                let (xs, ws) = (joined(rows, 1)?, joined(first.inputs[1], axis)?);
                let of_xs = xs.iter().map(|x| &func.ty(*x).shape[1]);
                if !of_xs.eq(ws.iter().map(|w| &func.ty(*w).shape[axis])) {
                    return None;
                }
                further.extend(xs.iter().zip(&ws).skip(1).map(|(x, w)| [*x, *w]));
                (Kind::Ragged { transposed: *transposed, index: None, offsets: arg(first.inputs[2])? }, (xs[0], Is::Given))
            }
            Op::GroupedContract { transposed } => {
                let (x, index, is) = match (Coded::of(func, rows), func.def(rows)) {
                    (Some(coded), _) => (coded.codes, coded.index, Is::Coded(coded.block.size)),
                    (None, node) if matches!(node.op, Op::Gather { batch: 0 }) => {
                        (node.inputs[0], Some(arg(node.inputs[1])?), Is::Given)
                    }
                    (None, _) => (rows, None, Is::Given),
                };
                let fits = func.ty(x).rank() == 2 && index.is_none_or(|i| func.ty(i).rank() == 1);
                let kind = Kind::Ragged { transposed: *transposed, index, offsets: arg(first.inputs[2])? };
                (kind, (arg(x).filter(|_| fits)?, is))
            }
            _ => return None,
        };
        let mut matrices = Vec::new();
        for id in &products {
            let node = &func.nodes[*id];
            let alike = node.op == first.op && node.inputs[0] == rows && node.inputs.get(2) == first.inputs.get(2);
            let (w, as_x) = match &func.def(node.inputs[1]).op {
                Op::Concat(_) if !further.is_empty() => (func.def(node.inputs[1]).inputs[0], Is::Given),
                _ => operand(node.inputs[1])?,
            };
            let lies_alike = func.ty(w) == func.ty(*matrices.first().unwrap_or(&w)) && func.ty(w).dtype == func.ty(x).dtype;
            if !alike || node.types[0] != *ty || as_x != is || !lies_alike {
                return None;
            }
            matrices.push(w);
        }
        let codes = match is {
            Is::Coded(block) => {
                let of = [rows].into_iter().chain(products.iter().map(|id| func.nodes[*id].inputs[1]));
                let of = of.map(|v| Coded::of(func, v)).collect::<Option<Vec<Coded>>>()?;
                let columns = of[1].block.rows;
                if of[0].block.rows != 1 || of[1..].iter().any(|c| c.block.rows != columns) {
                    return None;
                }
                Some(Codes { block, columns, scales: of.iter().map(|c| c.scales).collect() })
            }
            Is::Given | Is::Widened => None,
        };
        // What is gathered, widened or scaled for products is in no memory to be mapped.
        let mut inside: Vec<Value> = Vec::new();
        let mut open: Vec<Value> = products.iter().flat_map(|id| func.nodes[*id].inputs.clone()).collect();
        while let Some(v) = open.pop() {
            if arg(v).is_none() && !inside.contains(&v) {
                inside.push(v);
                open.extend(&func.def(v).inputs);
            }
        }
        let (mut above, mut operands) = (vec![false; func.nodes.len()], Vec::new());
        for (id, node) in func.nodes.iter() {
            let below = node.inputs.iter().any(|v| above[v.node.0 as usize]);
            let private = node.inputs.iter().any(|v| inside.contains(v));
            above[id.0 as usize] = match &node.op {
                Op::Contract(_) | Op::GroupedContract { .. } => true,
                Op::Arg(_) | Op::Const(..) => false,
                _ if inside.iter().any(|v| v.node == id) => false,
                Op::Map(_) | Op::Cast(_) if !private => below,
                Op::Broadcast { .. } if !private && !below => false,
                op if is_of_columns(op, &node.types[0]) && node.inputs.iter().all(|v| above[v.node.0 as usize]) => true,
                Op::Reshape(_) if below && !private => {
                    let [from, to] = [func.ty(node.inputs[0]), &node.types[0]];
                    let whole = |x: &TensorType| x.rank() == ty.rank();
                    if !(whole(from) && are_pairs(from, to) || whole(to) && are_pairs(to, from)) {
                        return None;
                    }
                    true
                }
                _ => return None,
            };
            if matches!(node.op, Op::Map(_) | Op::Cast(_) | Op::Broadcast { .. }) && !inside.iter().any(|v| v.node == id) {
                operands.extend(node.inputs.iter().copied().filter(|v| arg(*v).is_some()));
            }
        }
        operands.sort_unstable();
        operands.dedup();
        let given = |v: Value| {
            let of = func.ty(v);
            above[v.node.0 as usize] && of.shape == ty.shape && of.dtype.is_float()
        };
        let mapped: Vec<DType> =
            func.outputs.iter().filter(|o| !products.contains(&o.value.node)).map(|o| func.ty(o.value).dtype).collect();
        let held = Epilogue::fits(func.ty(x).dtype, products.len(), &mapped);
        let fits =
            held && products.len() <= MOST_MATRICES && ty.dtype != DType::E4M3 && func.outputs.iter().all(|o| given(o.value));
        let by_columns = func.nodes.iter().any(|(id, n)| {
            let moves = is_of_columns(&n.op, &n.types[0]) || matches!(n.op, Op::Reshape(_));
            moves && !inside.iter().any(|v| v.node == id)
        });
        let narrow = matches!(func.ty(x).dtype, DType::BF16 | DType::F16);
        let units = if by_columns { Some(units(func, &products, &kind).filter(|_| narrow && mapped.len() == 1)?) } else { None };
        let by_codes = codes.is_none() || mapped.len() <= products.len() && units.is_none();
        let found = Products { func, products, kind, x, matrices, further, operands, units, codes };
        let fits = fits && by_codes && found.codes.as_ref().is_none_or(|c| found.codes_lie(c));
        // What is summed in parts is whole nowhere to be mapped.
        let in_parts = found.dense_extents().is_some_and(|(_, e)| Product::parts_of(found.dtype(), &e) > 1);
        (fits && (found.alone().is_some() || !in_parts)).then_some(found)
    }

    /// Whether codes lie as a kernel takes them: terms behind each other in both operands, in as many blocks of one as of all; columns of a block along one axis.
    fn codes_lie(&self, codes: &Codes) -> bool {
        let (w, block) = (self.ty(self.matrices[0]), codes.block);
        // The axis before the last, which blocks of several go along, is of columns.
        let by_columns = match self.kind {
            Kind::Dense(spec) => w.rank() == 2 && spec.summed().len() == 1,
            Kind::Ragged { .. } => true,
        };
        if codes.columns != 1 && !(by_columns && codes.columns % BLOCK_COLUMNS == 0) {
            return false;
        }
        let terms = match self.kind {
            Kind::Ragged { transposed, .. } => w.shape.last().filter(|_| transposed).and_then(Dim::known),
            Kind::Dense(spec) => {
                let summed = spec.summed();
                let [rows, cols] = [&spec.lhs, &spec.rhs].map(|l| l.strip_suffix(&summed[..]));
                let apart = rows.zip(cols).is_some_and(|(rows, cols)| spec.out == [rows, cols].concat());
                let of = w.shape[w.rank() - summed.len()..].iter().map(Dim::known).collect::<Option<Vec<i64>>>();
                let whole = |of: &Vec<i64>| of.len() == 1 || of.last().is_some_and(|n| n % block == 0);
                of.filter(|of| apart && whole(of)).map(|of| of.iter().product())
            }
        };
        terms.is_some_and(|n| n % COPY_ALIGN == 0 && (block % PIECE == 0 || block >= n))
    }
    /// The one dense product, if nothing follows it.
    pub(super) fn alone(&self) -> Option<&'a Contract> {
        let Kind::Dense(spec) = self.kind else { return None };
        if self.codes.is_some() {
            return None;
        }
        let ([only], [given]) = (&self.products[..], &self.func.outputs[..]) else { return None };
        (given.value.node == *only).then_some(spec)
    }
    fn ty(&self, v: Value) -> &'a TensorType {
        self.func.ty(v)
    }
    /// The dtype of rows and matrices.
    fn dtype(&self) -> DType {
        self.ty(self.x).dtype
    }
    /// The type of each product.
    fn result(&self) -> &'a TensorType {
        &self.func.nodes[self.products[0]].types[0]
    }
    /// Of dense products the batch, and rows, columns, terms.
    fn dense_extents(&self) -> Option<(Dim, [Dim; 3])> {
        let Kind::Dense(spec) = self.kind else { return None };
        let [batch, m, n, k] = cost::contract(spec, &[self.ty(self.x), self.ty(self.matrices[0])]);
        Some((batch, [m, n, k]))
    }
    /// Whether a broadcast reads the argument.
    fn is_repeated(&self, v: Value) -> bool {
        self.func.nodes.values().any(|n| matches!(n.op, Op::Broadcast { .. }) && n.inputs.contains(&v))
    }
    /// The last axes of the result that its units go through.
    fn axes_of_units(&self) -> usize {
        let last = self.result().shape.last();
        self.units.map_or(0, |u| if u.pairs && last.is_some_and(|d| d.is(2)) { 2 } else { 1 })
    }
    /// How many there are.
    fn count(&self) -> i64 {
        self.products.len() as i64
    }
    /// The scales of codes, which are laid out before.
    pub(crate) fn num_scales(&self) -> usize {
        self.codes.as_ref().map_or(0, |c| c.scales.len())
    }
    /// What the maps read.
    pub(crate) fn read(&self) -> impl Iterator<Item = &'a TensorType> {
        let func = self.func;
        self.operands.clone().into_iter().map(|v| func.ty(v))
    }
    /// What is given.
    pub(crate) fn given(&self) -> impl Iterator<Item = &'a TensorType> {
        let func = self.func;
        func.outputs.iter().map(|o| func.ty(o.value))
    }
    /// What the kernel does.
    pub(crate) fn work(&self) -> Work {
        let count = Dim::from(self.count());
        let (class, shape) = match (&self.kind, self.dense_extents()) {
            (Kind::Dense(_), Some((batch, [m, n, k]))) => (Class::Product, vec![batch, m, n * count, k]),
            _ => {
                let [groups, rows, k, n] = self.ragged_extents();
                let k = self.further_terms().into_iter().fold(k, |k, more| k + more);
                (Class::GroupedProduct, vec![groups, rows, n * count, k])
            }
        };
        Work { class, dtype: self.dtype(), shape }
    }
    /// The terms of what lies behind along the summed axis.
    fn further_terms(&self) -> Vec<Dim> {
        self.further.iter().map(|[x, _]| self.ty(*x).shape[1].clone()).collect()
    }
    /// Of ragged products groups, rows, k, n.
    fn ragged_extents(&self) -> [Dim; 4] {
        let [rows, n] = &self.result().shape[..] else { base::bug!("a product of rows has two axes") };
        [self.ty(self.matrices[0]).shape[0].clone(), rows.clone(), self.ty(self.x).shape[1].clone(), n.clone()]
    }
}

/// The maps at an element.
pub(super) struct Maps<'a> {
    /// The body.
    pub func: &'a Func,
    /// What the kernel has summed there.
    pub sums: &'a [Value],
    /// What else is read.
    pub operands: &'a [Value],
    /// Where each operand is seen.
    pub views: &'a [StridedView],
    /// The shape of the result.
    pub shape: &'a [Dim],
    /// The axes of the result that each place of an element goes through, outermost first; by units the last place is one in a unit. Axes of one are in none.
    pub loops: &'a [Vec<usize>],
    /// Where it is, and what is there.
    pub element: &'a Element,
    /// If columns are mapped with others: how they lie.
    pub units: Option<Units>,
    /// What was computed there, its axes being these of the result, so many columns further on.
    pub known: Vec<(Value, Vec<usize>, i64, Expr)>,
}

impl Maps<'_> {
    /// If columns are taken by pairs: the axes of pairs and of their members, which are the last two of the result, or behind its own.
    fn pairs(&self) -> Option<[usize; 2]> {
        self.units.filter(|u| u.pairs)?;
        let rank = self.shape.len();
        Some(if self.shape[rank - 1].is(2) { [rank - 2, rank - 1] } else { [rank, rank + 1] })
    }
    /// The value at the element, its axes being these of the result; by units, so many columns further on.
    pub(super) fn eval(&mut self, b: &mut Build, v: Value, axes: &[usize], by: i64) -> Expr {
        if let Some((.., e)) = self.known.iter().find(|(x, of, at, _)| *x == v && of == axes && *at == by) {
            return e.clone();
        }
        let (func, node, pairs) = (self.func, self.func.def(v), self.pairs());
        // The member, where pairs have an axis.
        let member = if pairs.is_some_and(|[_, members]| axes.last() == Some(&members)) { Some(by % 2) } else { None };
        let e = match &node.op {
            Op::Contract(_) | Op::GroupedContract { .. } | Op::Attend(_) => {
                let i = self.sums.iter().position(|p| *p == v).expect("what the kernel sums");
                let turn = self.units.map_or(0, |u| by / u.unit * u.together() + by % u.unit);
                self.element.products[i + turn as usize].clone()
            }
            Op::Arg(_) => {
                let i = self.operands.iter().position(|o| *o == v).expect("an operand of the maps");
                let index = self.index(b, i, axes, by);
                Expr::load(self.element.operands[i], index)
            }
            Op::Const(c, dtype) => constant(*c, *dtype),
            Op::Map(f) => Expr::Map(*f, node.inputs.iter().map(|x| self.eval(b, *x, axes, by)).collect()),
            Op::Cast(to) => {
                let x = self.eval(b, node.inputs[0], axes, by);
                if func.ty(node.inputs[0]).dtype == *to { x } else { x.cast(*to) }
            }
            Op::Broadcast { axes: of, .. } => {
                let inner: Vec<usize> = of.iter().map(|a| axes[*a]).collect();
                let has = |axis: usize| inner.contains(&axis);
                let by = match (pairs, member) {
                    (Some([of_pairs, members]), Some(i)) => {
                        let pair = if has(of_pairs) { by - i } else { 0 };
                        pair + if has(members) { i } else { 0 }
                    }
                    _ if inner.last() == axes.last() => by,
                    _ => 0,
                };
                self.eval(b, node.inputs[0], &inner, by)
            }
            Op::Slice { start, .. } => self.eval(b, node.inputs[0], axes, by + start.known().unwrap_or(0)),
            Op::Concat(axis) => {
                let len = |part: usize| func.ty(node.inputs[part]).shape[*axis].known().unwrap_or(0);
                let (mut part, mut rest) = (0, member.unwrap_or(by));
                let before = by - rest;
                while rest >= len(part) {
                    rest -= len(part);
                    part += 1;
                }
                self.eval(b, node.inputs[part], axes, before + rest)
            }
            Op::Reshape(_) => {
                let [of_pairs, members] = pairs.expect("columns are split into pairs");
                let (columns, kept) = (self.shape.len() - 1, axes.len() - if member.is_some() { 2 } else { 1 });
                let split = if member.is_some() { vec![columns] } else { vec![of_pairs, members] };
                self.eval(b, node.inputs[0], &[&axes[..kept], &split[..]].concat(), by)
            }
            op => base::bug!("{} is no map", op.name()),
        };
        let e = b.bind(e);
        self.known.push((v, axes.to_vec(), by, e.clone()));
        e
    }
    /// Where operand `i` has the element, its axes being these of the result, so many columns further on.
    fn index(&self, b: &mut Build, i: usize, axes: &[usize], by: i64) -> Expr {
        let (view, shape) = (&self.views[i], self.shape);
        let stride = |axis: &usize| axes.iter().position(|a| a == axis).map_or(Dim::from(0), |at| view.strides[at].clone());
        let mut index = Expr::int(0);
        for (place, (through, at)) in self.loops.iter().zip(&self.element.at).enumerate() {
            let by = if place + 1 == self.loops.len() { by } else { 0 };
            if let Some([of_pairs, members]) = self.pairs().filter(|_| place + 1 == self.loops.len()) {
                let pair = b.bind(at.clone() + Expr::int(by / 2));
                let column = pair.clone() * Expr::int(2) + Expr::int(by % 2);
                let whole = Some(shape.len() - 1).filter(|axis| *axis != members);
                for (axis, at) in
                    whole.map(|axis| (axis, column)).into_iter().chain([(of_pairs, pair), (members, Expr::int(by % 2))])
                {
                    let stride = stride(&axis);
                    if !stride.is(0) {
                        index = index + b.bind(at) * b.dim(&stride);
                    }
                }
                continue;
            }
            // Neighbouring axes that are one in the operand are not told apart.
            let mut parts: Vec<(Dim, Dim)> = Vec::new();
            for (extent, stride) in through.iter().map(|axis| (shape[*axis].clone(), stride(axis))) {
                match parts.last_mut().filter(|(_, outer)| *outer == stride.clone() * extent.clone()) {
                    Some(outer) => *outer = (outer.0.clone() * extent, stride),
                    None => parts.push((extent, stride)),
                }
            }
            let mut rest = at.clone() + Expr::int(by);
            for (outer, (extent, stride)) in parts.iter().enumerate().rev() {
                let extent = b.dim(extent);
                let part = if outer == 0 { rest.clone() } else { Expr::rem(rest.clone(), extent.clone()) };
                if !stride.is(0) {
                    let stride = b.dim(stride);
                    index = index + b.bind(part) * stride;
                }
                if outer > 0 {
                    rest = b.bind(Expr::floor_div(rest, extent));
                }
            }
        }
        b.bind(index)
    }
}

impl Lowerer<'_> {
    /// The step of such a region.
    pub(super) fn products(&mut self, b: &mut Body, id: NodeId, p: &Products) {
        let node = b.func.nodes[id].clone();
        let operand = |v: Value| match p.func.def(v).op {
            Op::Arg(i) => node.inputs[i as usize],
            _ => base::bug!("an argument of the region"),
        };
        if let Some(spec) = p.alone() {
            let operands = [p.x, p.matrices[0]].map(|v| self.strided(b, operand(v)));
            let product = graph::Node { op: Op::Contract(spec.clone()), ..node.clone() };
            return self.contraction(b, id, &product, (operands, p.dtype()));
        }
        let seen: Vec<StridedView> = p.operands.iter().map(|v| self.strided(b, operand(*v))).collect();
        let product_of = |v: Value| p.products.iter().position(|x| *x == v.node);
        let in_place = self.only_maps_read_targets(b, &node.inputs, p);
        let (mut places, mut results) = (Vec::new(), Vec::new());
        for (i, o) in p.func.outputs.iter().enumerate() {
            let v = Value { node: id, index: i as u32 };
            let (mut place, adds) = self.destination(b, v, in_place);
            let (mut add_to, mut given) = (None, product_of(o.value).map_or(Given::Map, Given::Product));
            match given {
                Given::Map if adds && place.is_contiguous() => given = Given::Sum,
                _ if adds => add_to = Some(std::mem::replace(&mut place, self.alloc(b.func.ty(v), false, b.depth))),
                Given::Product(_) | Given::Map | Given::Sum => {}
            }
            results.push((given, p.ty(o.value).dtype));
            places.push((place, add_to));
        }
        let aligned_results = places.iter().zip(&node.types).all(|((view, _), ty)| is_aligned(&view.at, ty.dtype));
        let mapped: Vec<Value> = p.func.outputs.iter().map(|o| o.value).filter(|v| product_of(*v).is_none()).collect();
        let all: Vec<usize> = (0..p.result().rank()).collect();
        let sums: Vec<Value> = p.products.iter().map(|id| Value { node: *id, index: 0 }).collect();
        let source = |(v, view): (&Value, &StridedView)| match places.iter().position(|(place, _)| place == view) {
            Some(i) => Operand::Replaced(i),
            None => Operand::Read(p.ty(*v).dtype, view.span()),
        };
        let operands: Vec<Operand> = p.operands.iter().zip(&seen).map(source).collect();
        let read = seen.iter().zip(&operands).filter(|(_, of)| matches!(of, Operand::Read(..)));
        let read: Vec<library::View> = read.map(|(v, _)| v.at.clone()).collect();
        let mut epilogue =
            Epilogue { taken: None, codes: None, matrices: p.products.len(), operands, results, map: None, units: p.units };
        epilogue.codes = p.codes.as_ref().map(|c| OfCodes {
            block: c.block,
            columns: if p.matrices.len() == 1 { c.columns } else { 1 },
            product: p.result().dtype,
        });
        let maps = |loops: Vec<Vec<usize>>| {
            let (seen, mapped, all, sums) = (&seen, &mapped, &all, &sums);
            move |build: &mut Build, element: &Element| {
                let mut maps = Maps {
                    func: p.func,
                    sums,
                    operands: &p.operands,
                    views: seen,
                    shape: &p.result().shape,
                    loops: &loops,
                    element,
                    units: p.units,
                    known: Vec::new(),
                };
                let taken = p.units.map_or(vec![0], |u| u.taken().collect());
                let of = |v: &Value| taken.iter().map(|by| maps.eval(build, *v, all, *by)).collect::<Vec<_>>();
                mapped.iter().flat_map(of).collect::<Vec<Expr>>()
            }
        };
        let (kernel, mut views) = match p.kind {
            Kind::Dense(spec) if p.codes.is_some() => {
                let mut views: Vec<View> = [p.x].iter().chain(&p.matrices).map(|v| self.dense(b, operand(*v)).at).collect();
                let aligned =
                    [is_aligned(&views[0], DType::E4M3), views[1..].iter().all(|v| is_aligned(v, DType::E4M3)), aligned_results];
                let (_, [m, n, k]) = p.dense_extents().expect("a dense product");
                views.extend(self.scales(b, p, [&m, &n, &k], None, &operand));
                // Axes of one are in no loop.
                let (rows, shape) = (spec.rows().len(), &p.result().shape);
                let long = |axes: std::ops::Range<usize>| axes.filter(|i| !shape[*i].is(1)).collect::<Vec<_>>();
                let map = maps(vec![long(0..rows), long(rows..shape.len())]);
                epilogue.map = if mapped.is_empty() { None } else { Some(&map) };
                let one = Dim::from(1);
                let strides = [&k, &one, &one, &k, &n, &one].map(Dim::clone);
                let (dtype, result, extents) = (DType::E4M3, p.result().dtype, [m, n, k]);
                let product =
                    Product { dtype, result, extents, strides, batch: Vec::new(), accumulate: false, parts: 1, aligned };
                (gpu_product_map(&product, &epilogue, None), views)
            }
            Kind::Dense(spec) => {
                let (gemms, letters) =
                    self.alike(b, p, spec, [p.x].iter().chain(&p.matrices).map(|v| operand(*v)).collect(), &places[0].0);
                let at = |of: &Vec<char>| {
                    of.iter().map(|l| spec.out.iter().position(|o| o == l).expect("a letter of the result")).collect()
                };
                let mut loops: Vec<Vec<usize>> = letters.batch.iter().chain([&letters.rows, &letters.cols]).map(at).collect();
                if p.units.is_some() {
                    let columns = loops.last_mut().expect("columns");
                    let of_units = columns.split_off(columns.len() - p.axes_of_units());
                    loops.push(of_units);
                }
                let map = maps(loops);
                epilogue.map = Some(&map);
                let mut views = vec![gemms[0].a.clone()];
                views.extend(gemms.iter().map(|g| g.b.clone()));
                let aligned =
                    [is_aligned(&views[0], p.dtype()), views[1..].iter().all(|v| is_aligned(v, p.dtype())), aligned_results];
                let g = gemms.into_iter().next().expect("a product");
                let extents = [g.m, g.n, g.k];
                let (dtype, result) = (p.dtype(), p.result().dtype);
                let product =
                    Product { dtype, result, extents, strides: g.strides, batch: g.batch, accumulate: false, parts: 1, aligned };
                (gpu_product_map(&product, &epilogue, None), views)
            }
            Kind::Ragged { transposed, index, offsets } => {
                let mut views = vec![self.dense(b, operand(p.x)).at];
                views.extend(p.matrices.iter().map(|w| self.dense(b, operand(*w)).at).collect::<Vec<_>>());
                views.extend(p.further.iter().flatten().map(|v| self.dense(b, operand(*v)).at).collect::<Vec<_>>());
                let aligned = aligned_results && views.iter().all(|v| is_aligned(v, p.dtype()));
                if p.codes.is_some() {
                    let [groups, rows, k, n] = p.ragged_extents();
                    let taken = index.map(|i| (p.ty(p.x).shape[0].clone(), self.dense(b, operand(i)).at));
                    views.extend(self.scales(b, p, [&rows, &n, &k], Some((groups, taken)), &operand));
                }
                views.extend(index.map(|i| self.dense(b, operand(i)).at));
                views.push(self.dense(b, operand(offsets)).at);
                epilogue.taken = index.map(|_| p.ty(p.x).shape[0].clone());
                let map = maps(vec![vec![0], vec![1]]);
                epilogue.map = if mapped.is_empty() { None } else { Some(&map) };
                let (dtype, extents, further) = (p.dtype(), p.ragged_extents(), p.further_terms());
                let grouped = Grouped { dtype, extents, further, rows: Some(transposed), accumulate: false, aligned };
                (gpu_grouped_map(&grouped, &epilogue, None), views)
            }
        };
        views.extend(read);
        views.extend(places.iter().map(|(view, _)| view.at.clone()));
        let types: Vec<&TensorType> = node.inputs.iter().map(|v| b.func.ty(*v)).collect();
        let step = self.launch(kernel, views, node.origin, cost::work(&node.op, &types, &node.types));
        b.steps.push(step);
        for (i, (view, add_to)) in places.into_iter().enumerate() {
            self.finish(b, Value { node: id, index: i as u32 }, view, add_to);
        }
    }

    /// The scales of rows and of each matrix as the kernel takes them, of products of these rows, columns and terms; of ragged ones how many groups there
    /// are, and if rows are taken by index, of how many, and where the indices are.
    fn scales(
        &mut self,
        b: &mut Body,
        p: &Products,
        [m, n, k]: [&Dim; 3],
        ragged: Option<(Dim, Option<(Dim, View)>)>,
        operand: &dyn Fn(Value) -> Value,
    ) -> Vec<View> {
        let codes = p.codes.as_ref().expect("products of codes");
        let (groups, taken) = ragged.unwrap_or((Dim::from(1), None));
        let mut laid_out = Vec::new();
        for (i, v) in codes.scales.iter().enumerate() {
            let (rows, groups, taken) = if i == 0 { (m, Dim::from(1), taken.clone()) } else { (n, groups.clone(), None) };
            let together = if i == 0 { 1 } else { codes.columns };
            if together > 1 && p.matrices.len() == 1 {
                // Each is that of a product's columns, and read as it is. Threads that hold two matrices' sums have no registers to scale one product while the other runs.
                laid_out.push(self.dense(b, operand(*v)).at);
                continue;
            }
            let [blocks, width] = scales(rows, k, codes.block);
            let ty = TensorType::new(DType::F32, vec![groups.clone(), blocks.clone(), width]);
            let mut views = vec![self.dense(b, operand(*v)).at];
            let (of, index) = taken.unzip();
            views.extend(index);
            let to = self.alloc(&ty, false, b.depth).at;
            views.push(to.clone());
            let moved = Dim::from(2 * DType::F32.bytes() as i64) * ty.elems();
            let work = Work { class: Class::Copy, dtype: DType::F32, shape: vec![moved] };
            let kernel = gpu_scales(&GivenScales { groups, rows: rows.clone(), together, blocks, taken: of });
            let origin = b.func.nodes[operand(*v).node].origin;
            let step = self.launch(kernel, views, origin, work);
            b.steps.push(step);
            laid_out.push(to);
        }
        laid_out
    }

    /// Whether of the arguments whose memory outputs replace a region reads elements alone, each where it gives the result's.
    fn only_maps_read_targets(&self, b: &Body, inputs: &[Value], p: &Products) -> bool {
        let replaced = |v: Value| match b.func.def(v).op {
            Op::Arg(arg) => b.targets.iter().any(|t| t.replaces == Some(arg as usize)),
            _ => false,
        };
        let apart = |(i, v): (usize, &Value)| {
            let mut below = *v;
            while is_layout(&b.func.def(below).op) {
                below = b.func.def(below).inputs[0];
            }
            let inside = p.func.arg_value(i);
            let scales = p.codes.iter().flat_map(|c| &c.scales);
            let multiplied =
                inside == p.x || p.matrices.iter().chain(p.further.iter().flatten()).chain(scales).any(|v| *v == inside);
            let of_maps = p.operands.contains(&inside) && !multiplied;
            let at_element = of_maps && below == *v && p.ty(inside).shape == p.result().shape;
            !replaced(below) || at_element && !p.is_repeated(inside)
        };
        inputs.iter().enumerate().all(apart)
    }

    /// The dense products of a region with a result `c`, and what their loops go through: all the same but for where their matrices begin. `operands`
    /// are the rows and the matrices; what does not lie so is copied.
    fn alike(
        &mut self,
        b: &mut Body,
        p: &Products,
        spec: &Contract,
        operands: Vec<Value>,
        c: &StridedView,
    ) -> (Vec<Gemm>, Letters) {
        let of = |spec: &Contract, views: &[StridedView]| {
            let all =
                views[1..].iter().map(|w| gemm_of(spec, p.dtype(), [&views[0], w, c], false)).collect::<Option<Vec<_>>>()?;
            // Periods are of neighbouring columns.
            if p.units.is_some() && !all[0].1.cols.ends_with(&spec.out[spec.out.len() - p.axes_of_units()..]) {
                return None;
            }
            let lie = |(g, letters): &(Gemm, Letters)| (g.strides.clone(), g.batch.clone(), letters.clone());
            let letters = all[0].1.clone();
            all.iter().all(|x| lie(x) == lie(&all[0])).then(|| (all.into_iter().map(|(g, _)| g).collect(), letters))
        };
        let views: Vec<StridedView> = operands.into_iter().map(|v| self.strided(b, v)).collect();
        let found: Option<(Vec<Gemm>, Letters)> = of(spec, &views);
        let lies = found.as_ref().map_or([false; 2], |(gemms, _)| self.lies(&gemms[0]));
        if let Some(found) = found.filter(|_| lies == [true; 2]) {
            return found;
        }
        let (copied, views) = self.laid_out(b, spec, views, p.dtype(), lies);
        of(&copied, &views).unwrap_or_else(|| base::bug!("{copied} of contiguous operands"))
    }
}
