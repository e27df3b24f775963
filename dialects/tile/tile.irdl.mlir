// The dialect `tile`: docs/ir/tile.md says what each op means.
//
// What IRDL cannot say is left to `tile::verify` and `tile::text::parse`: which function takes how many operands, what a load gives,
// scopes, that sizes are dims. Regions end in `vector.yield`, as in `graph`. A constraint used twice in an op means one type twice.
irdl.dialect @tile {
  // A kernel's buffer: dtype in memory, number of elements, access, what it begins at a multiple of in bytes.
  irdl.type @buffer {
    %d_f64 = irdl.is f64
    %d_f32 = irdl.is f32
    %d_tf32 = irdl.is tf32
    %d_bf16 = irdl.is bf16
    %d_f16 = irdl.is f16
    %d_e4m3 = irdl.is f8E4M3FN
    %d_i64 = irdl.is i64
    %d_i32 = irdl.is i32
    %d_i1 = irdl.is i1
    %dtype = irdl.any_of(%d_f64, %d_f32, %d_tf32, %d_bf16, %d_f16, %d_e4m3, %d_i64, %d_i32, %d_i1)
    %elems = irdl.base "#builtin.string"
    %n_read = irdl.is "read"
    %n_write = irdl.is "write"
    %n_read_write = irdl.is "read_write"
    %access = irdl.any_of(%n_read, %n_write, %n_read_write)
    %alignment = irdl.base "#builtin.integer"
    irdl.parameters(dtype: %dtype, elems: %elems, access: %access, alignment: %alignment)
  }
  // A block's own memory: dtype, number of elements.
  irdl.type @scratch {
    %d_f64 = irdl.is f64
    %d_f32 = irdl.is f32
    %d_tf32 = irdl.is tf32
    %d_bf16 = irdl.is bf16
    %d_f16 = irdl.is f16
    %d_e4m3 = irdl.is f8E4M3FN
    %d_i64 = irdl.is i64
    %d_i32 = irdl.is i32
    %d_i1 = irdl.is i1
    %dtype = irdl.any_of(%d_f64, %d_f32, %d_tf32, %d_bf16, %d_f16, %d_e4m3, %d_i64, %d_i32, %d_i1)
    %elems = irdl.base "#builtin.integer"
    irdl.parameters(dtype: %dtype, elems: %elems)
  }
  // The place of a mutable variable.
  irdl.type @place {
    %d_f64 = irdl.is f64
    %d_f32 = irdl.is f32
    %d_i64 = irdl.is i64
    %d_i32 = irdl.is i32
    %d_i1 = irdl.is i1
    %dtype = irdl.any_of(%d_f64, %d_f32, %d_i64, %d_i32, %d_i1)
    irdl.parameters(dtype: %dtype)
  }

  // A device function: arguments of its region are the block's index, the buffers, the scratch memories.
  irdl.operation @kernel {
    %a_sym_name = irdl.base "#builtin.string"
    %a_grid = irdl.base "#builtin.string"
    %a_dims = irdl.base "#builtin.array"
    %a_buffers = irdl.base "#builtin.array"
    %a_scratch = irdl.base "#builtin.array"
    %a_vars = irdl.base "#builtin.array"
    %body = irdl.region with size 1
    irdl.attributes {"sym_name" = %a_sym_name, "grid" = %a_grid, "dims" = %a_dims, "buffers" = %a_buffers,
      "scratch" = %a_scratch, "vars" = %a_vars}
    irdl.regions(body: %body)
  }
  // A constant.
  irdl.operation @const {
    %d_f64 = irdl.is f64
    %d_f32 = irdl.is f32
    %d_i64 = irdl.is i64
    %d_i32 = irdl.is i32
    %d_i1 = irdl.is i1
    %x = irdl.any_of(%d_f64, %d_f32, %d_i64, %d_i32, %d_i1)
    %a_value = irdl.base "#builtin.float"
    irdl.results(result: %x)
    irdl.attributes {"value" = %a_value}
  }
  // The value of an extent.
  irdl.operation @dim {
    %i64 = irdl.is i64
    %a_index = irdl.base "#builtin.integer"
    irdl.results(result: %i64)
    irdl.attributes {"index" = %a_index}
  }
  // What a mutable variable holds.
  irdl.operation @get {
    %x = irdl.any
    %var = irdl.parametric @tile::@place<%x>
    irdl.operands(var: %var)
    irdl.results(result: %x)
  }
  // An element, widened to f32 if it is a narrower float.
  irdl.operation @load {
    %buffer = irdl.base @tile::@buffer
    %scratch = irdl.base @tile::@scratch
    %mem = irdl.any_of(%buffer, %scratch)
    %i64 = irdl.is i64
    %x = irdl.any
    irdl.operands(mem: %mem, index: %i64)
    irdl.results(result: %x)
  }
  // A function of scalars.
  irdl.operation @map {
    %d_f64 = irdl.is f64
    %d_f32 = irdl.is f32
    %d_i64 = irdl.is i64
    %d_i32 = irdl.is i32
    %d_i1 = irdl.is i1
    %x = irdl.any_of(%d_f64, %d_f32, %d_i64, %d_i32, %d_i1)
    %y = irdl.any
    %n_add = irdl.is "add"
    %n_sub = irdl.is "sub"
    %n_mul = irdl.is "mul"
    %n_div = irdl.is "div"
    %n_floor_div = irdl.is "floor_div"
    %n_rem = irdl.is "rem"
    %n_min = irdl.is "min"
    %n_max = irdl.is "max"
    %n_pow = irdl.is "pow"
    %n_neg = irdl.is "neg"
    %n_abs = irdl.is "abs"
    %n_sign = irdl.is "sign"
    %n_floor = irdl.is "floor"
    %n_exp = irdl.is "exp"
    %n_log = irdl.is "log"
    %n_sqrt = irdl.is "sqrt"
    %n_rsqrt = irdl.is "rsqrt"
    %n_sin = irdl.is "sin"
    %n_cos = irdl.is "cos"
    %n_tanh = irdl.is "tanh"
    %n_sigmoid = irdl.is "sigmoid"
    %n_silu = irdl.is "silu"
    %n_swiglu = irdl.is "swiglu"
    %n_softplus = irdl.is "softplus"
    %n_erf = irdl.is "erf"
    %n_eq = irdl.is "eq"
    %n_ne = irdl.is "ne"
    %n_lt = irdl.is "lt"
    %n_le = irdl.is "le"
    %n_and = irdl.is "and"
    %n_or = irdl.is "or"
    %n_not = irdl.is "not"
    %n_is_finite = irdl.is "is_finite"
    %a_fn = irdl.any_of(%n_add, %n_sub, %n_mul, %n_div, %n_floor_div, %n_rem, %n_min, %n_max, %n_pow, %n_neg, %n_abs,
      %n_sign, %n_floor, %n_exp, %n_log, %n_sqrt, %n_rsqrt, %n_sin, %n_cos, %n_tanh, %n_sigmoid, %n_silu, %n_swiglu,
      %n_softplus, %n_erf, %n_eq, %n_ne, %n_lt, %n_le, %n_and, %n_or, %n_not, %n_is_finite)
    irdl.operands(operands: variadic %x)
    irdl.results(result: %y)
    irdl.attributes {"fn" = %a_fn}
  }
  // c ? x : y.
  irdl.operation @select {
    %i1 = irdl.is i1
    %x = irdl.any
    irdl.operands(c: %i1, x: %x, y: %x)
    irdl.results(result: %x)
  }
  // The integer by which a number is found in their order.
  irdl.operation @order {
    %x = irdl.is f32
    %y = irdl.is i32
    irdl.operands(operand: %x)
    irdl.results(result: %y)
  }
  // A conversion; to a narrow float it rounds and stays f32.
  irdl.operation @cast {
    %x = irdl.any
    %y = irdl.any
    %d_f64 = irdl.is f64
    %d_f32 = irdl.is f32
    %d_tf32 = irdl.is tf32
    %d_bf16 = irdl.is bf16
    %d_f16 = irdl.is f16
    %d_e4m3 = irdl.is f8E4M3FN
    %d_i64 = irdl.is i64
    %d_i32 = irdl.is i32
    %d_i1 = irdl.is i1
    %dtype = irdl.any_of(%d_f64, %d_f32, %d_tf32, %d_bf16, %d_f16, %d_e4m3, %d_i64, %d_i32, %d_i1)
    irdl.operands(operand: %x)
    irdl.results(result: %y)
    irdl.attributes {"to" = %dtype}
  }
  // A variable that does not change.
  irdl.operation @let {
    %d_f64 = irdl.is f64
    %d_f32 = irdl.is f32
    %d_i64 = irdl.is i64
    %d_i32 = irdl.is i32
    %d_i1 = irdl.is i1
    %x = irdl.any_of(%d_f64, %d_f32, %d_i64, %d_i32, %d_i1)
    %a_id = irdl.base "#builtin.integer"
    irdl.operands(value: %x)
    irdl.results(result: %x)
    irdl.attributes {"id" = %a_id}
  }
  // A mutable variable with its first value.
  irdl.operation @var {
    %x = irdl.any
    %var = irdl.parametric @tile::@place<%x>
    %a_id = irdl.base "#builtin.integer"
    irdl.operands(value: %x)
    irdl.results(result: %var)
    irdl.attributes {"id" = %a_id}
  }
  // A new value.
  irdl.operation @assign {
    %x = irdl.any
    %var = irdl.parametric @tile::@place<%x>
    irdl.operands(var: %var, value: %x)
  }
  // A term of a reduction.
  irdl.operation @accumulate {
    %x = irdl.any
    %var = irdl.parametric @tile::@place<%x>
    %n_sum = irdl.is "sum"
    %n_prod = irdl.is "prod"
    %n_max = irdl.is "max"
    %n_min = irdl.is "min"
    %a_fn = irdl.any_of(%n_sum, %n_prod, %n_max, %n_min)
    irdl.operands(var: %var, value: %x)
    irdl.attributes {"fn" = %a_fn}
  }
  // mem[index] = value.
  irdl.operation @store {
    %buffer = irdl.base @tile::@buffer
    %scratch = irdl.base @tile::@scratch
    %mem = irdl.any_of(%buffer, %scratch)
    %i64 = irdl.is i64
    %x = irdl.any
    irdl.operands(mem: %mem, index: %i64, value: %x)
  }
  // A counted loop; the argument of its region counts.
  irdl.operation @for {
    %i64 = irdl.is i64
    %a_id = irdl.base "#builtin.integer"
    %n_serial = irdl.is "serial"
    %n_parallel = irdl.is "parallel"
    %n_vector = irdl.is "vector"
    %a_kind = irdl.any_of(%n_serial, %n_parallel, %n_vector)
    %body = irdl.region(%i64) with size 1
    irdl.operands(lo: %i64, hi: %i64)
    irdl.attributes {"id" = %a_id, "kind" = %a_kind}
    irdl.regions(body: %body)
  }
  // The first region gives the condition to its vector.yield.
  irdl.operation @while {
    %cond = irdl.region() with size 1
    %body = irdl.region() with size 1
    irdl.regions(cond: %cond, body: %body)
  }
  // Either region.
  irdl.operation @if {
    %i1 = irdl.is i1
    %then = irdl.region() with size 1
    %otherwise = irdl.region() with size 1
    irdl.operands(cond: %i1)
    irdl.regions(then: %then, otherwise: %otherwise)
  }
  // A rectangle between a buffer and scratch; for each axis of the buffer extent, stride and the first index.
  irdl.operation @copy {
    %from_buffer = irdl.base @tile::@buffer
    %from_scratch = irdl.base @tile::@scratch
    %from = irdl.any_of(%from_buffer, %from_scratch)
    %to_buffer = irdl.base @tile::@buffer
    %to_scratch = irdl.base @tile::@scratch
    %to = irdl.any_of(%to_buffer, %to_scratch)
    %i64 = irdl.is i64
    %a_rows = irdl.base "#builtin.integer"
    %a_cols = irdl.base "#builtin.integer"
    irdl.operands(from: %from, to: %to, axes: variadic %i64)
    irdl.attributes {"rows" = %a_rows, "cols" = %a_cols}
  }
  // A copy to scratch that the block beside may make too, by halves for both.
  irdl.operation @copy_paired {
    %from = irdl.base @tile::@buffer
    %to = irdl.base @tile::@scratch
    %i1 = irdl.is i1
    %i64 = irdl.is i64
    %a_rows = irdl.base "#builtin.integer"
    %a_cols = irdl.base "#builtin.integer"
    irdl.operands(from: %from, to: %to, paired: %i1, axes: variadic %i64)
    irdl.attributes {"rows" = %a_rows, "cols" = %a_cols}
  }
  // A copy of rows in runs along two axes.
  irdl.operation @copy_runs {
    %from_buffer = irdl.base @tile::@buffer
    %from_scratch = irdl.base @tile::@scratch
    %from = irdl.any_of(%from_buffer, %from_scratch)
    %to_buffer = irdl.base @tile::@buffer
    %to_scratch = irdl.base @tile::@scratch
    %to = irdl.any_of(%to_buffer, %to_scratch)
    %i64 = irdl.is i64
    %a_rows = irdl.base "#builtin.integer"
    %a_cols = irdl.base "#builtin.integer"
    %a_run = irdl.base "#builtin.integer"
    irdl.operands(from: %from, to: %to, axes: variadic %i64)
    irdl.attributes {"rows" = %a_rows, "cols" = %a_cols, "run" = %a_run}
  }
  // The same as a copy to scratch, with rows taken by indices.
  irdl.operation @copy_rows {
    %from = irdl.base @tile::@buffer
    %to = irdl.base @tile::@scratch
    %index = irdl.base @tile::@buffer
    %i64 = irdl.is i64
    %a_rows = irdl.base "#builtin.integer"
    %a_cols = irdl.base "#builtin.integer"
    irdl.operands(from: %from, to: %to, index: %index, axes: variadic %i64)
    irdl.attributes {"rows" = %a_rows, "cols" = %a_cols}
  }
  // The same with runs of rows taken by indices.
  irdl.operation @copy_rows_of_runs {
    %from = irdl.base @tile::@buffer
    %to = irdl.base @tile::@scratch
    %index = irdl.base @tile::@buffer
    %i64 = irdl.is i64
    %a_rows = irdl.base "#builtin.integer"
    %a_cols = irdl.base "#builtin.integer"
    %a_run = irdl.base "#builtin.integer"
    irdl.operands(from: %from, to: %to, index: %index, axes: variadic %i64)
    irdl.attributes {"rows" = %a_rows, "cols" = %a_cols, "run" = %a_run}
  }
  // A product of tiles.
  irdl.operation @dot {
    %a_buffer = irdl.base @tile::@buffer
    %a_scratch = irdl.base @tile::@scratch
    %a = irdl.any_of(%a_buffer, %a_scratch)
    %b_buffer = irdl.base @tile::@buffer
    %b_scratch = irdl.base @tile::@scratch
    %b = irdl.any_of(%b_buffer, %b_scratch)
    %c_buffer = irdl.base @tile::@buffer
    %c_scratch = irdl.base @tile::@scratch
    %c = irdl.any_of(%c_buffer, %c_scratch)
    %i64 = irdl.is i64
    %true = irdl.is true
    %false = irdl.is false
    %a_accumulate = irdl.any_of(%true, %false)
    irdl.operands(a: %a, b: %b, c: %c, m: %i64, n: %i64, k: %i64, a_base: %i64, a_row: %i64, a_col: %i64,
      b_base: %i64, b_row: %i64, b_col: %i64, c_base: %i64, c_row: %i64, c_col: %i64)
    irdl.attributes {"accumulate" = %a_accumulate}
  }
  // A product of tiles, of which only the first rows count.
  irdl.operation @dot_rows {
    %a_buffer = irdl.base @tile::@buffer
    %a_scratch = irdl.base @tile::@scratch
    %a = irdl.any_of(%a_buffer, %a_scratch)
    %b_buffer = irdl.base @tile::@buffer
    %b_scratch = irdl.base @tile::@scratch
    %b = irdl.any_of(%b_buffer, %b_scratch)
    %c_buffer = irdl.base @tile::@buffer
    %c_scratch = irdl.base @tile::@scratch
    %c = irdl.any_of(%c_buffer, %c_scratch)
    %i64 = irdl.is i64
    %true = irdl.is true
    %false = irdl.is false
    %a_accumulate = irdl.any_of(%true, %false)
    irdl.operands(a: %a, b: %b, c: %c, m: %i64, n: %i64, k: %i64, a_base: %i64, a_row: %i64, a_col: %i64,
      b_base: %i64, b_row: %i64, b_col: %i64, c_base: %i64, c_row: %i64, c_col: %i64, counted: %i64)
    irdl.attributes {"accumulate" = %a_accumulate}
  }
}
