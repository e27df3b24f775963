// The dialect `graph`: docs/ir/graph.md says what each op means.
//
// What IRDL cannot say is left to `graph::verify` and `graph::text::parse`: how shapes follow from attributes, which function
// takes how many operands, that extents are dims. It has no terminators and no variadics of differing types either; so regions
// end in `vector.yield`, and such operands and results pass as one `!graph.values`, made and taken apart by
// `builtin.unrealized_conversion_cast`. A constraint used twice in an op means one type twice.
irdl.dialect @graph {
  // A dtype and the extents, each the text of a dim: !graph.tensor<f32, ["B", "floordiv(T, 16) - 1", "128"]>.
  irdl.type @tensor {
    %f64 = irdl.is f64
    %f32 = irdl.is f32
    %tf32 = irdl.is tf32
    %bf16 = irdl.is bf16
    %f16 = irdl.is f16
    %f8e4m3fn = irdl.is f8E4M3FN
    %i64 = irdl.is i64
    %i32 = irdl.is i32
    %i1 = irdl.is i1
    %dtype = irdl.any_of(%f64, %f32, %tf32, %bf16, %f16, %f8e4m3fn, %i64, %i32, %i1)
    %shape = irdl.base "#builtin.array"
    irdl.parameters(dtype: %dtype, shape: %shape)
  }
  // Values of any types, in order.
  irdl.type @values {}

  // A parameter or state of the model.
  irdl.operation @param {
    %a_name = irdl.base "#builtin.string"
    %a_type = irdl.base @graph::@tensor
    %n_param = irdl.is "param"
    %n_state = irdl.is "state"
    %a_role = irdl.any_of(%n_param, %n_state)
    %n_normal = irdl.is "normal"
    %n_uniform = irdl.is "uniform"
    %n_constant = irdl.is "constant"
    %a_init = irdl.any_of(%n_normal, %n_uniform, %n_constant)
    %a_value = irdl.base "#builtin.float"
    %true = irdl.is true
    %false = irdl.is false
    %a_decay = irdl.any_of(%true, %false)
    irdl.attributes {"name" = %a_name, "type" = %a_type, "role" = %a_role, "init" = %a_init, "value" = %a_value,
      "decay" = %a_decay}
  }
  // An entry point: arguments are those of its block, outputs the operands of its vector.yield.
  irdl.operation @func {
    %a_sym_name = irdl.base "#builtin.string"
    %a_arg_names = irdl.base "#builtin.array"
    %a_arg_roles = irdl.base "#builtin.array"
    %a_output_names = irdl.base "#builtin.array"
    %a_output_roles = irdl.base "#builtin.array"
    %body = irdl.region with size 1
    irdl.attributes {"sym_name" = %a_sym_name, "arg_names" = %a_arg_names, "arg_roles" = %a_arg_roles,
      "output_names" = %a_output_names, "output_roles" = %a_output_roles}
    irdl.regions(body: %body)
  }
  // A scalar.
  irdl.operation @const {
    %d = irdl.any
    %scalar = irdl.is []
    %x = irdl.parametric @graph::@tensor<%d, %scalar>
    %a_value = irdl.base "#builtin.float"
    irdl.results(result: %x)
    irdl.attributes {"value" = %a_value}
  }
  // The value of a dim.
  irdl.operation @extent {
    %d = irdl.any
    %scalar = irdl.is []
    %x = irdl.parametric @graph::@tensor<%d, %scalar>
    %a_dim = irdl.base "#builtin.string"
    irdl.results(result: %x)
    irdl.attributes {"dim" = %a_dim}
  }
  // 0, 1, …
  irdl.operation @iota {
    %i32 = irdl.is i32
    %s_x = irdl.any
    %x = irdl.parametric @graph::@tensor<%i32, %s_x>
    irdl.results(result: %x)
  }
  // Elementwise.
  irdl.operation @map {
    %d = irdl.any
    %shape = irdl.any
    %x = irdl.parametric @graph::@tensor<%d, %shape>
    %e = irdl.any
    %y = irdl.parametric @graph::@tensor<%e, %shape>
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
  // Elementwise choice.
  irdl.operation @select {
    %i1 = irdl.is i1
    %shape = irdl.any
    %c = irdl.parametric @graph::@tensor<%i1, %shape>
    %d = irdl.any
    %x = irdl.parametric @graph::@tensor<%d, %shape>
    irdl.operands(condition: %c, if_true: %x, if_false: %x)
    irdl.results(result: %x)
  }
  // Elementwise conversion.
  irdl.operation @cast {
    %d = irdl.any
    %shape = irdl.any
    %x = irdl.parametric @graph::@tensor<%d, %shape>
    %e = irdl.any
    %y = irdl.parametric @graph::@tensor<%e, %shape>
    irdl.operands(operand: %x)
    irdl.results(result: %y)
  }
  // The operand, without a gradient.
  irdl.operation @stop_gradient {
    %d = irdl.any
    %s_x = irdl.any
    %x = irdl.parametric @graph::@tensor<%d, %s_x>
    irdl.operands(operand: %x)
    irdl.results(result: %x)
  }
  // Along axes, which disappear.
  irdl.operation @reduce {
    %d = irdl.any
    %s_x = irdl.any
    %x = irdl.parametric @graph::@tensor<%d, %s_x>
    %s_y = irdl.any
    %y = irdl.parametric @graph::@tensor<%d, %s_y>
    %n_sum = irdl.is "sum"
    %n_prod = irdl.is "prod"
    %n_max = irdl.is "max"
    %n_min = irdl.is "min"
    %a_fn = irdl.any_of(%n_sum, %n_prod, %n_max, %n_min)
    %a_axes = irdl.base "#builtin.dense_array"
    irdl.operands(operand: %x)
    irdl.results(result: %y)
    irdl.attributes {"fn" = %a_fn, "axes" = %a_axes}
  }
  // Operand axis i becomes result axis axes[i].
  irdl.operation @broadcast {
    %d = irdl.any
    %s_x = irdl.any
    %x = irdl.parametric @graph::@tensor<%d, %s_x>
    %s_y = irdl.any
    %y = irdl.parametric @graph::@tensor<%d, %s_y>
    %a_axes = irdl.base "#builtin.dense_array"
    irdl.operands(operand: %x)
    irdl.results(result: %y)
    irdl.attributes {"axes" = %a_axes}
  }
  // Result axis i is operand axis perm[i].
  irdl.operation @transpose {
    %d = irdl.any
    %s_x = irdl.any
    %x = irdl.parametric @graph::@tensor<%d, %s_x>
    %s_y = irdl.any
    %y = irdl.parametric @graph::@tensor<%d, %s_y>
    %a_perm = irdl.base "#builtin.dense_array"
    irdl.operands(operand: %x)
    irdl.results(result: %y)
    irdl.attributes {"perm" = %a_perm}
  }
  // Row-major reinterpretation.
  irdl.operation @reshape {
    %d = irdl.any
    %s_x = irdl.any
    %x = irdl.parametric @graph::@tensor<%d, %s_x>
    %s_y = irdl.any
    %y = irdl.parametric @graph::@tensor<%d, %s_y>
    irdl.operands(operand: %x)
    irdl.results(result: %y)
  }
  // Elements start, start + step, … of an axis.
  irdl.operation @slice {
    %d = irdl.any
    %s_x = irdl.any
    %x = irdl.parametric @graph::@tensor<%d, %s_x>
    %s_y = irdl.any
    %y = irdl.parametric @graph::@tensor<%d, %s_y>
    %a_axis = irdl.base "#builtin.integer"
    %a_start = irdl.base "#builtin.string"
    %a_len = irdl.base "#builtin.string"
    %a_step = irdl.base "#builtin.integer"
    irdl.operands(operand: %x)
    irdl.results(result: %y)
    irdl.attributes {"axis" = %a_axis, "start" = %a_start, "len" = %a_len, "step" = %a_step}
  }
  // One after the other along an axis.
  irdl.operation @concat {
    %values = irdl.base @graph::@values
    %y = irdl.base @graph::@tensor
    %a_axis = irdl.base "#builtin.integer"
    irdl.operands(operands: %values)
    irdl.results(result: %y)
    irdl.attributes {"axis" = %a_axis}
  }
  // Copies of a value around an axis.
  irdl.operation @pad {
    %d = irdl.any
    %s_x = irdl.any
    %x = irdl.parametric @graph::@tensor<%d, %s_x>
    %s_y = irdl.any
    %y = irdl.parametric @graph::@tensor<%d, %s_y>
    %a_axis = irdl.base "#builtin.integer"
    %a_low = irdl.base "#builtin.string"
    %a_high = irdl.base "#builtin.string"
    %a_value = irdl.base "#builtin.float"
    irdl.operands(operand: %x)
    irdl.results(result: %y)
    irdl.attributes {"axis" = %a_axis, "low" = %a_low, "high" = %a_high, "value" = %a_value}
  }
  // Einstein summation.
  irdl.operation @contract {
    %f64 = irdl.is f64
    %f32 = irdl.is f32
    %tf32 = irdl.is tf32
    %bf16 = irdl.is bf16
    %f16 = irdl.is f16
    %f8e4m3fn = irdl.is f8E4M3FN
    %float = irdl.any_of(%f64, %f32, %tf32, %bf16, %f16, %f8e4m3fn)
    %s_x = irdl.any
    %x = irdl.parametric @graph::@tensor<%float, %s_x>
    %s_y = irdl.any
    %y = irdl.parametric @graph::@tensor<%float, %s_y>
    %s_z = irdl.any
    %z = irdl.parametric @graph::@tensor<%float, %s_z>
    %a_spec = irdl.base "#builtin.string"
    irdl.operands(lhs: %x, rhs: %y)
    irdl.results(result: %z)
    irdl.attributes {"spec" = %a_spec}
  }
  // Rows by index.
  irdl.operation @gather {
    %d = irdl.any
    %s_x = irdl.any
    %x = irdl.parametric @graph::@tensor<%d, %s_x>
    %i32 = irdl.is i32
    %s_i = irdl.any
    %i = irdl.parametric @graph::@tensor<%i32, %s_i>
    %s_y = irdl.any
    %y = irdl.parametric @graph::@tensor<%d, %s_y>
    %a_batch = irdl.base "#builtin.integer"
    irdl.operands(operand: %x, index: %i)
    irdl.results(result: %y)
    irdl.attributes {"batch" = %a_batch}
  }
  // Sums rows by index.
  irdl.operation @scatter_add {
    %i32 = irdl.is i32
    %s_i = irdl.any
    %i = irdl.parametric @graph::@tensor<%i32, %s_i>
    %d = irdl.any
    %s_x = irdl.any
    %x = irdl.parametric @graph::@tensor<%d, %s_x>
    %s_y = irdl.any
    %y = irdl.parametric @graph::@tensor<%d, %s_y>
    %a_batch = irdl.base "#builtin.integer"
    %a_n = irdl.base "#builtin.string"
    irdl.operands(index: %i, rows: %x)
    irdl.results(result: %y)
    irdl.attributes {"batch" = %a_batch, "n" = %a_n}
  }
  // Indices of the greatest.
  irdl.operation @topk {
    %f64 = irdl.is f64
    %f32 = irdl.is f32
    %tf32 = irdl.is tf32
    %bf16 = irdl.is bf16
    %f16 = irdl.is f16
    %f8e4m3fn = irdl.is f8E4M3FN
    %float = irdl.any_of(%f64, %f32, %tf32, %bf16, %f16, %f8e4m3fn)
    %s_x = irdl.any
    %x = irdl.parametric @graph::@tensor<%float, %s_x>
    %i32 = irdl.is i32
    %s_y = irdl.any
    %y = irdl.parametric @graph::@tensor<%i32, %s_y>
    %a_k = irdl.base "#builtin.integer"
    irdl.operands(operand: %x)
    irdl.results(result: %y)
    irdl.attributes {"k" = %a_k}
  }
  // Running sum.
  irdl.operation @cumsum {
    %d = irdl.any
    %s_x = irdl.any
    %x = irdl.parametric @graph::@tensor<%d, %s_x>
    %a_axis = irdl.base "#builtin.integer"
    %true = irdl.is true
    %false = irdl.is false
    %a_exclusive = irdl.any_of(%true, %false)
    %a_reverse = irdl.any_of(%true, %false)
    irdl.operands(operand: %x)
    irdl.results(result: %x)
    irdl.attributes {"axis" = %a_axis, "exclusive" = %a_exclusive, "reverse" = %a_reverse}
  }
  // Softmax attention over a domain.
  irdl.operation @attend {
    %f64 = irdl.is f64
    %f32 = irdl.is f32
    %tf32 = irdl.is tf32
    %bf16 = irdl.is bf16
    %f16 = irdl.is f16
    %f8e4m3fn = irdl.is f8E4M3FN
    %float = irdl.any_of(%f64, %f32, %tf32, %bf16, %f16, %f8e4m3fn)
    %s_q = irdl.any
    %q = irdl.parametric @graph::@tensor<%float, %s_q>
    %s_k = irdl.any
    %k = irdl.parametric @graph::@tensor<%float, %s_k>
    %s_v = irdl.any
    %v = irdl.parametric @graph::@tensor<%float, %s_v>
    %values = irdl.base @graph::@values
    %s_o = irdl.any
    %o = irdl.parametric @graph::@tensor<%float, %s_o>
    %acc = irdl.any_of(%f64, %f32)
    %s_l = irdl.any
    %l = irdl.parametric @graph::@tensor<%acc, %s_l>
    %a_domain = irdl.base "#builtin.string"
    %a_scale = irdl.base "#builtin.float"
    irdl.operands(q: %q, k: %k, v: %v, domain_operands: optional %values)
    irdl.results(o: %o, lse: %l)
    irdl.attributes {"domain" = %a_domain, "scale" = %a_scale}
  }
  // Its gradient.
  irdl.operation @attend_grad {
    %f64 = irdl.is f64
    %f32 = irdl.is f32
    %tf32 = irdl.is tf32
    %bf16 = irdl.is bf16
    %f16 = irdl.is f16
    %f8e4m3fn = irdl.is f8E4M3FN
    %float = irdl.any_of(%f64, %f32, %tf32, %bf16, %f16, %f8e4m3fn)
    %s_q = irdl.any
    %q = irdl.parametric @graph::@tensor<%float, %s_q>
    %s_k = irdl.any
    %k = irdl.parametric @graph::@tensor<%float, %s_k>
    %s_v = irdl.any
    %v = irdl.parametric @graph::@tensor<%float, %s_v>
    %s_o = irdl.any
    %o = irdl.parametric @graph::@tensor<%float, %s_o>
    %acc = irdl.any_of(%f64, %f32)
    %s_l = irdl.any
    %l = irdl.parametric @graph::@tensor<%acc, %s_l>
    %values = irdl.base @graph::@values
    %a_domain = irdl.base "#builtin.string"
    %a_scale = irdl.base "#builtin.float"
    irdl.operands(q: %q, k: %k, v: %v, o: %o, lse: %l, d_o: %o, d_lse: %l, domain_operands: optional %values)
    irdl.results(d_q: %q, d_k: %k, d_v: %v)
    irdl.attributes {"domain" = %a_domain, "scale" = %a_scale}
  }
  // Sorts rows by group.
  irdl.operation @route {
    %i32 = irdl.is i32
    %s_c = irdl.any
    %c = irdl.parametric @graph::@tensor<%i32, %s_c>
    %s_o = irdl.any
    %o = irdl.parametric @graph::@tensor<%i32, %s_o>
    %s_s = irdl.any
    %s = irdl.parametric @graph::@tensor<%i32, %s_s>
    %a_groups = irdl.base "#builtin.integer"
    irdl.operands(choice: %c)
    irdl.results(offsets: %o, source: %s, position: %c)
    irdl.attributes {"groups" = %a_groups}
  }
  // Each row times the matrix of its group.
  irdl.operation @grouped_contract {
    %f64 = irdl.is f64
    %f32 = irdl.is f32
    %tf32 = irdl.is tf32
    %bf16 = irdl.is bf16
    %f16 = irdl.is f16
    %f8e4m3fn = irdl.is f8E4M3FN
    %float = irdl.any_of(%f64, %f32, %tf32, %bf16, %f16, %f8e4m3fn)
    %s_x = irdl.any
    %x = irdl.parametric @graph::@tensor<%float, %s_x>
    %s_w = irdl.any
    %w = irdl.parametric @graph::@tensor<%float, %s_w>
    %i32 = irdl.is i32
    %s_o = irdl.any
    %o = irdl.parametric @graph::@tensor<%i32, %s_o>
    %s_y = irdl.any
    %y = irdl.parametric @graph::@tensor<%float, %s_y>
    %true = irdl.is true
    %false = irdl.is false
    %a_transposed = irdl.any_of(%true, %false)
    irdl.operands(rows: %x, matrices: %w, offsets: %o)
    irdl.results(result: %y)
    irdl.attributes {"transposed" = %a_transposed}
  }
  // The sum of outer products over the rows of each group.
  irdl.operation @grouped_outer {
    %f64 = irdl.is f64
    %f32 = irdl.is f32
    %tf32 = irdl.is tf32
    %bf16 = irdl.is bf16
    %f16 = irdl.is f16
    %f8e4m3fn = irdl.is f8E4M3FN
    %float = irdl.any_of(%f64, %f32, %tf32, %bf16, %f16, %f8e4m3fn)
    %s_x = irdl.any
    %x = irdl.parametric @graph::@tensor<%float, %s_x>
    %s_y = irdl.any
    %y = irdl.parametric @graph::@tensor<%float, %s_y>
    %i32 = irdl.is i32
    %s_o = irdl.any
    %o = irdl.parametric @graph::@tensor<%i32, %s_o>
    %s_z = irdl.any
    %z = irdl.parametric @graph::@tensor<%float, %s_z>
    irdl.operands(lhs: %x, rhs: %y, offsets: %o)
    irdl.results(result: %z)
  }
  // All members tell each other the offsets of their rows.
  irdl.operation @exchange_offsets {
    %i32 = irdl.is i32
    %s_o = irdl.any
    %o = irdl.parametric @graph::@tensor<%i32, %s_o>
    %s_a = irdl.any
    %a = irdl.parametric @graph::@tensor<%i32, %s_a>
    %s_b = irdl.any
    %b = irdl.parametric @graph::@tensor<%i32, %s_b>
    %a_members = irdl.base "#builtin.integer"
    irdl.operands(offsets: %o)
    irdl.results(all: %a, own: %b)
    irdl.attributes {"members" = %a_members}
  }
  // Rows go to the member that has their group.
  irdl.operation @exchange {
    %f64 = irdl.is f64
    %f32 = irdl.is f32
    %tf32 = irdl.is tf32
    %bf16 = irdl.is bf16
    %f16 = irdl.is f16
    %f8e4m3fn = irdl.is f8E4M3FN
    %float = irdl.any_of(%f64, %f32, %tf32, %bf16, %f16, %f8e4m3fn)
    %s_x = irdl.any
    %x = irdl.parametric @graph::@tensor<%float, %s_x>
    %i32 = irdl.is i32
    %s_o = irdl.any
    %o = irdl.parametric @graph::@tensor<%i32, %s_o>
    %s_y = irdl.any
    %y = irdl.parametric @graph::@tensor<%float, %s_y>
    %a_members = irdl.base "#builtin.integer"
    irdl.operands(rows: %x, offsets: %o)
    irdl.results(result: %y)
    irdl.attributes {"members" = %a_members}
  }
  // Rows come back from the members that have their groups.
  irdl.operation @return {
    %f64 = irdl.is f64
    %f32 = irdl.is f32
    %tf32 = irdl.is tf32
    %bf16 = irdl.is bf16
    %f16 = irdl.is f16
    %f8e4m3fn = irdl.is f8E4M3FN
    %float = irdl.any_of(%f64, %f32, %tf32, %bf16, %f16, %f8e4m3fn)
    %s_x = irdl.any
    %x = irdl.parametric @graph::@tensor<%float, %s_x>
    %i32 = irdl.is i32
    %s_o = irdl.any
    %o = irdl.parametric @graph::@tensor<%i32, %s_o>
    %s_y = irdl.any
    %y = irdl.parametric @graph::@tensor<%float, %s_y>
    %a_members = irdl.base "#builtin.integer"
    irdl.operands(rows: %x, offsets: %o)
    irdl.results(result: %y)
    irdl.attributes {"members" = %a_members}
  }
  // Codes of blocks of the last axis, or of rows and it, and a scale for each block.
  irdl.operation @quantize {
    %f64 = irdl.is f64
    %f32 = irdl.is f32
    %tf32 = irdl.is tf32
    %bf16 = irdl.is bf16
    %f16 = irdl.is f16
    %f8e4m3fn = irdl.is f8E4M3FN
    %float = irdl.any_of(%f64, %f32, %tf32, %bf16, %f16, %f8e4m3fn)
    %shape = irdl.any
    %x = irdl.parametric @graph::@tensor<%float, %shape>
    %c = irdl.parametric @graph::@tensor<%f8e4m3fn, %shape>
    %s_s = irdl.any
    %s = irdl.parametric @graph::@tensor<%f32, %s_s>
    %a_size = irdl.base "#builtin.integer"
    %a_rows = irdl.base "#builtin.integer"
    irdl.operands(operand: %x)
    irdl.results(codes: %c, scales: %s)
    irdl.attributes {"size" = %a_size, "rows" = %a_rows}
  }
  // What codes and scales are worth.
  irdl.operation @dequantize {
    %f32 = irdl.is f32
    %f8e4m3fn = irdl.is f8E4M3FN
    %shape = irdl.any
    %c = irdl.parametric @graph::@tensor<%f8e4m3fn, %shape>
    %s_s = irdl.any
    %s = irdl.parametric @graph::@tensor<%f32, %s_s>
    %y = irdl.parametric @graph::@tensor<%f32, %shape>
    %a_size = irdl.base "#builtin.integer"
    %a_rows = irdl.base "#builtin.integer"
    irdl.operands(codes: %c, scales: %s)
    irdl.results(result: %y)
    irdl.attributes {"size" = %a_size, "rows" = %a_rows}
  }
  // A loop; its body is a function.
  irdl.operation @repeat {
    %values = irdl.base @graph::@values
    %results = irdl.base @graph::@values
    %a_count = irdl.base "#builtin.integer"
    %a_carried = irdl.base "#builtin.integer"
    %a_constant = irdl.base "#builtin.integer"
    %true = irdl.is true
    %false = irdl.is false
    %a_reverse = irdl.any_of(%true, %false)
    %a_sym_name = irdl.base "#builtin.string"
    %a_arg_names = irdl.base "#builtin.array"
    %a_arg_roles = irdl.base "#builtin.array"
    %a_output_names = irdl.base "#builtin.array"
    %a_output_roles = irdl.base "#builtin.array"
    %body = irdl.region with size 1
    irdl.operands(operands: %values)
    irdl.results(results: %results)
    irdl.attributes {"count" = %a_count, "carried" = %a_carried, "constant" = %a_constant, "reverse" = %a_reverse,
      "sym_name" = %a_sym_name, "arg_names" = %a_arg_names, "arg_roles" = %a_arg_roles, "output_names" = %a_output_names,
      "output_roles" = %a_output_roles}
    irdl.regions(body: %body)
  }
  // Ops that are computed together; its body is a function.
  irdl.operation @fused {
    %values = irdl.base @graph::@values
    %results = irdl.base @graph::@values
    %a_form_0 = irdl.is "select"
    %a_form_1 = irdl.is "product"
    %a_form_2 = irdl.is "stream"
    %a_form_3 = irdl.is "rows"
    %a_form = irdl.any_of(%a_form_0, %a_form_1, %a_form_2, %a_form_3)
    %a_sym_name = irdl.base "#builtin.string"
    %a_arg_names = irdl.base "#builtin.array"
    %a_arg_roles = irdl.base "#builtin.array"
    %a_output_names = irdl.base "#builtin.array"
    %a_output_roles = irdl.base "#builtin.array"
    %body = irdl.region with size 1
    irdl.operands(operands: %values)
    irdl.results(results: %results)
    irdl.attributes {"form" = %a_form, "sym_name" = %a_sym_name, "arg_names" = %a_arg_names, "arg_roles" = %a_arg_roles,
      "output_names" = %a_output_names, "output_roles" = %a_output_roles}
    irdl.regions(body: %body)
  }
}
