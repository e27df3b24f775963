"builtin.module"() ({
  "graph.param"() {name = "layers.*.w", type = !graph.tensor<bf16, ["2", "3", "4"]>, role = "param", init = "normal", value = 0.02 : f64, decay = true} : () -> ()
  "graph.param"() {name = "odd \"name\"", type = !graph.tensor<bf16, ["2", "3", "4"]>, role = "param", init = "uniform", value = 0.5 : f64, decay = false} : () -> ()
  "graph.param"() {name = "bias", type = !graph.tensor<bf16, ["2", "3", "4"]>, role = "state", init = "constant", value = 0xFFF0000000000000 : f64, decay = false} : () -> ()
  "graph.func"() ({
  ^bb0(%0: !graph.tensor<f32, ["B", "T", "8"]>, %1: !graph.tensor<f32, ["8", "4", "6"]>, %2: !graph.tensor<i32, ["B", "T", "2", "3"]>, %3: !graph.tensor<i32, ["B", "T"]>, %4: !graph.tensor<i32, ["N", "2"]>):
    %5 = "graph.const"() {value = 3.141592653589793 : f64} : () -> !graph.tensor<f64, []>
    %6 = "graph.const"() {value = 0x7FF8000000000000 : f64} : () -> !graph.tensor<f32, []>
    %7 = "graph.const"() {value = 0xFFF0000000000000 : f64} : () -> !graph.tensor<f32, []>
    %8 = "graph.const"() {value = -5.0e-324 : f64} : () -> !graph.tensor<f64, []>
    %9 = "graph.const"() {value = 7.0 : f64} : () -> !graph.tensor<i64, []>
    %10 = "graph.extent"() {dim = "B*floordiv(T + 63, 64) - 1"} : () -> !graph.tensor<i64, []>
    %11 = "graph.iota"() : () -> !graph.tensor<i32, ["T"]>
    %12 = "graph.map"(%0) {fn = "exp"} : (!graph.tensor<f32, ["B", "T", "8"]>) -> !graph.tensor<f32, ["B", "T", "8"]>
    %13 = "graph.map"(%0, %12) {fn = "add"} : (!graph.tensor<f32, ["B", "T", "8"]>, !graph.tensor<f32, ["B", "T", "8"]>) -> !graph.tensor<f32, ["B", "T", "8"]>
    %14 = "graph.map"(%0, %13) {fn = "lt"} : (!graph.tensor<f32, ["B", "T", "8"]>, !graph.tensor<f32, ["B", "T", "8"]>) -> !graph.tensor<i1, ["B", "T", "8"]>
    %15 = "graph.select"(%14, %0, %13) : (!graph.tensor<i1, ["B", "T", "8"]>, !graph.tensor<f32, ["B", "T", "8"]>, !graph.tensor<f32, ["B", "T", "8"]>) -> !graph.tensor<f32, ["B", "T", "8"]>
    %16 = "graph.cast"(%15) : (!graph.tensor<f32, ["B", "T", "8"]>) -> !graph.tensor<bf16, ["B", "T", "8"]>
    %17 = "graph.cast"(%15) : (!graph.tensor<f32, ["B", "T", "8"]>) -> !graph.tensor<f16, ["B", "T", "8"]>
    %18 = "graph.cast"(%15) : (!graph.tensor<f32, ["B", "T", "8"]>) -> !graph.tensor<f8E4M3FN, ["B", "T", "8"]>
    %19 = "graph.cast"(%15) : (!graph.tensor<f32, ["B", "T", "8"]>) -> !graph.tensor<i1, ["B", "T", "8"]>
    %20 = "graph.reduce"(%15) {fn = "max", axes = array<i64: 0, 2>} : (!graph.tensor<f32, ["B", "T", "8"]>) -> !graph.tensor<f32, ["T"]>
    %21 = "graph.stop_gradient"(%15) : (!graph.tensor<f32, ["B", "T", "8"]>) -> !graph.tensor<f32, ["B", "T", "8"]>
    %22 = "graph.reduce"(%21) {fn = "sum", axes = array<i64: 0, 1, 2>} : (!graph.tensor<f32, ["B", "T", "8"]>) -> !graph.tensor<f32, []>
    %23 = "graph.broadcast"(%20) {axes = array<i64: 1>} : (!graph.tensor<f32, ["T"]>) -> !graph.tensor<f32, ["B", "T", "8"]>
    %24 = "graph.map"(%21, %23) {fn = "sub"} : (!graph.tensor<f32, ["B", "T", "8"]>, !graph.tensor<f32, ["B", "T", "8"]>) -> !graph.tensor<f32, ["B", "T", "8"]>
    %25 = "graph.transpose"(%24) {perm = array<i64: 2, 0, 1>} : (!graph.tensor<f32, ["B", "T", "8"]>) -> !graph.tensor<f32, ["8", "B", "T"]>
    %26 = "graph.reshape"(%24) : (!graph.tensor<f32, ["B", "T", "8"]>) -> !graph.tensor<f32, ["B*T", "2", "4"]>
    %27 = "graph.slice"(%26) {axis = 2 : i64, start = "1", len = "2", step = 2 : i64} : (!graph.tensor<f32, ["B*T", "2", "4"]>) -> !graph.tensor<f32, ["B*T", "2", "2"]>
    %in28 = "builtin.unrealized_conversion_cast"(%26, %27) : (!graph.tensor<f32, ["B*T", "2", "4"]>, !graph.tensor<f32, ["B*T", "2", "2"]>) -> !graph.values
    %28 = "graph.concat"(%in28) {axis = 2 : i64} : (!graph.values) -> !graph.tensor<f32, ["B*T", "2", "6"]>
    %29 = "graph.pad"(%28) {axis = 0 : i64, low = "0", high = "P", value = 0x7FF0000000000000 : f64} : (!graph.tensor<f32, ["B*T", "2", "6"]>) -> !graph.tensor<f32, ["B*T + P", "2", "6"]>
    %30 = "graph.contract"(%24, %1) {spec = "btd,dhk->bthk"} : (!graph.tensor<f32, ["B", "T", "8"]>, !graph.tensor<f32, ["8", "4", "6"]>) -> !graph.tensor<f32, ["B", "T", "4", "6"]>
    %31 = "graph.slice"(%30) {axis = 2 : i64, start = "0", len = "2", step = 1 : i64} : (!graph.tensor<f32, ["B", "T", "4", "6"]>) -> !graph.tensor<f32, ["B", "T", "2", "6"]>
    %32:2 = "graph.attend"(%30, %31, %31) {domain = "causal & window(64)", scale = 0.25 : f64} : (!graph.tensor<f32, ["B", "T", "4", "6"]>, !graph.tensor<f32, ["B", "T", "2", "6"]>, !graph.tensor<f32, ["B", "T", "2", "6"]>) -> (!graph.tensor<f32, ["B", "T", "4", "6"]>, !graph.tensor<f32, ["B", "T", "4"]>)
    %33:3 = "graph.attend_grad"(%30, %31, %31, %32#0, %32#1, %32#0, %32#1) {domain = "causal & window(64)", scale = 0.25 : f64} : (!graph.tensor<f32, ["B", "T", "4", "6"]>, !graph.tensor<f32, ["B", "T", "2", "6"]>, !graph.tensor<f32, ["B", "T", "2", "6"]>, !graph.tensor<f32, ["B", "T", "4", "6"]>, !graph.tensor<f32, ["B", "T", "4"]>, !graph.tensor<f32, ["B", "T", "4", "6"]>, !graph.tensor<f32, ["B", "T", "4"]>) -> (!graph.tensor<f32, ["B", "T", "4", "6"]>, !graph.tensor<f32, ["B", "T", "2", "6"]>, !graph.tensor<f32, ["B", "T", "2", "6"]>)
    %in34 = "builtin.unrealized_conversion_cast"(%3, %2) : (!graph.tensor<i32, ["B", "T"]>, !graph.tensor<i32, ["B", "T", "2", "3"]>) -> !graph.values
    %34:2 = "graph.attend"(%30, %31, %31, %in34) {domain = "segments(0, 0) & (blocks(1, 64) | tokens(1) | groups(1, 0) | ends_at(0))", scale = 0.25 : f64} : (!graph.tensor<f32, ["B", "T", "4", "6"]>, !graph.tensor<f32, ["B", "T", "2", "6"]>, !graph.tensor<f32, ["B", "T", "2", "6"]>, !graph.values) -> (!graph.tensor<f32, ["B", "T", "4", "6"]>, !graph.tensor<f32, ["B", "T", "4"]>)
    %in35 = "builtin.unrealized_conversion_cast"(%3, %2) : (!graph.tensor<i32, ["B", "T"]>, !graph.tensor<i32, ["B", "T", "2", "3"]>) -> !graph.values
    %35:3 = "graph.attend_grad"(%30, %31, %31, %34#0, %34#1, %34#0, %34#1, %in35) {domain = "segments(0, 0) & (blocks(1, 64) | tokens(1) | groups(1, 0) | ends_at(0))", scale = 0.25 : f64} : (!graph.tensor<f32, ["B", "T", "4", "6"]>, !graph.tensor<f32, ["B", "T", "2", "6"]>, !graph.tensor<f32, ["B", "T", "2", "6"]>, !graph.tensor<f32, ["B", "T", "4", "6"]>, !graph.tensor<f32, ["B", "T", "4"]>, !graph.tensor<f32, ["B", "T", "4", "6"]>, !graph.tensor<f32, ["B", "T", "4"]>, !graph.values) -> (!graph.tensor<f32, ["B", "T", "4", "6"]>, !graph.tensor<f32, ["B", "T", "2", "6"]>, !graph.tensor<f32, ["B", "T", "2", "6"]>)
    %36 = "graph.gather"(%0, %3) {batch = 1 : i64} : (!graph.tensor<f32, ["B", "T", "8"]>, !graph.tensor<i32, ["B", "T"]>) -> !graph.tensor<f32, ["B", "T", "8"]>
    %37 = "graph.scatter_add"(%3, %36) {batch = 1 : i64, n = "V"} : (!graph.tensor<i32, ["B", "T"]>, !graph.tensor<f32, ["B", "T", "8"]>) -> !graph.tensor<f32, ["B", "V", "8"]>
    %38 = "graph.topk"(%0) {k = 2 : i64} : (!graph.tensor<f32, ["B", "T", "8"]>) -> !graph.tensor<i32, ["B", "T", "2"]>
    %39 = "graph.cumsum"(%0) {axis = 1 : i64, exclusive = true, reverse = false} : (!graph.tensor<f32, ["B", "T", "8"]>) -> !graph.tensor<f32, ["B", "T", "8"]>
    %40:3 = "graph.route"(%4) {groups = 4 : i64} : (!graph.tensor<i32, ["N", "2"]>) -> (!graph.tensor<i32, ["5"]>, !graph.tensor<i32, ["2*N"]>, !graph.tensor<i32, ["N", "2"]>)
    %41 = "graph.reshape"(%0) : (!graph.tensor<f32, ["B", "T", "8"]>) -> !graph.tensor<f32, ["B*T", "8"]>
    %42 = "graph.gather"(%41, %40#1) {batch = 0 : i64} : (!graph.tensor<f32, ["B*T", "8"]>, !graph.tensor<i32, ["2*N"]>) -> !graph.tensor<f32, ["2*N", "8"]>
    %43 = "graph.transpose"(%1) {perm = array<i64: 1, 0, 2>} : (!graph.tensor<f32, ["8", "4", "6"]>) -> !graph.tensor<f32, ["4", "8", "6"]>
    %44 = "graph.grouped_contract"(%42, %43, %40#0) {transposed = false} : (!graph.tensor<f32, ["2*N", "8"]>, !graph.tensor<f32, ["4", "8", "6"]>, !graph.tensor<i32, ["5"]>) -> !graph.tensor<f32, ["2*N", "6"]>
    %45 = "graph.grouped_outer"(%42, %44, %40#0) : (!graph.tensor<f32, ["2*N", "8"]>, !graph.tensor<f32, ["2*N", "6"]>, !graph.tensor<i32, ["5"]>) -> !graph.tensor<f32, ["4", "8", "6"]>
    %46:2 = "graph.exchange_offsets"(%40#0) {members = 2 : i64} : (!graph.tensor<i32, ["5"]>) -> (!graph.tensor<i32, ["2", "5"]>, !graph.tensor<i32, ["3"]>)
    %47 = "graph.exchange"(%42, %46#0) {members = 2 : i64} : (!graph.tensor<f32, ["2*N", "8"]>, !graph.tensor<i32, ["2", "5"]>) -> !graph.tensor<f32, ["4*N", "8"]>
    %48 = "graph.return"(%47, %46#0) {members = 2 : i64} : (!graph.tensor<f32, ["4*N", "8"]>, !graph.tensor<i32, ["2", "5"]>) -> !graph.tensor<f32, ["2*N", "8"]>
    %49:2 = "graph.quantize"(%42) {size = 4 : i64, rows = 2 : i64} : (!graph.tensor<f32, ["2*N", "8"]>) -> (!graph.tensor<f8E4M3FN, ["2*N", "8"]>, !graph.tensor<f32, ["N", "2"]>)
    %50 = "graph.dequantize"(%49#0, %49#1) {size = 4 : i64, rows = 2 : i64} : (!graph.tensor<f8E4M3FN, ["2*N", "8"]>, !graph.tensor<f32, ["N", "2"]>) -> !graph.tensor<f32, ["2*N", "8"]>
    "vector.yield"(%50, %5, %6, %7, %8, %9, %10, %11, %22, %25, %29, %34#0, %35#1, %37, %38, %39, %40#2, %44, %45, %46#1, %48, %16, %17, %18, %19, %32#0, %33#2) : (!graph.tensor<f32, ["2*N", "8"]>, !graph.tensor<f64, []>, !graph.tensor<f32, []>, !graph.tensor<f32, []>, !graph.tensor<f64, []>, !graph.tensor<i64, []>, !graph.tensor<i64, []>, !graph.tensor<i32, ["T"]>, !graph.tensor<f32, []>, !graph.tensor<f32, ["8", "B", "T"]>, !graph.tensor<f32, ["B*T + P", "2", "6"]>, !graph.tensor<f32, ["B", "T", "4", "6"]>, !graph.tensor<f32, ["B", "T", "2", "6"]>, !graph.tensor<f32, ["B", "V", "8"]>, !graph.tensor<i32, ["B", "T", "2"]>, !graph.tensor<f32, ["B", "T", "8"]>, !graph.tensor<i32, ["N", "2"]>, !graph.tensor<f32, ["2*N", "6"]>, !graph.tensor<f32, ["4", "8", "6"]>, !graph.tensor<i32, ["3"]>, !graph.tensor<f32, ["2*N", "8"]>, !graph.tensor<bf16, ["B", "T", "8"]>, !graph.tensor<f16, ["B", "T", "8"]>, !graph.tensor<f8E4M3FN, ["B", "T", "8"]>, !graph.tensor<i1, ["B", "T", "8"]>, !graph.tensor<f32, ["B", "T", "4", "6"]>, !graph.tensor<f32, ["B", "T", "2", "6"]>) -> ()
  }) {sym_name = "ops", arg_names = ["x", "w", "idx", "seg", "choice"], arg_roles = ["input", "param", "input", "state", "scalar"], output_names = ["out0", "out1", "out2", "out3", "out4", "out5", "out6", "out7", "out8", "out9", "out10", "out11", "out12", "out13", "out14", "out15", "out16", "out17", "out18", "out19", "out20", "out21", "out22", "out23", "out24", "out25", "out26"], output_roles = ["result", "result", "result", "result", "result", "result", "result", "result", "result", "result", "result", "result", "result", "result", "result", "result", "result", "result", "result", "result", "result", "result", "result", "result", "result", "result", "result"]} : () -> ()
  "graph.func"() ({
  ^bb0(%0: !graph.tensor<f32, ["B", "4"]>, %1: !graph.tensor<f32, ["2", "3", "4"]>):
    %in2 = "builtin.unrealized_conversion_cast"(%0, %1) : (!graph.tensor<f32, ["B", "4"]>, !graph.tensor<f32, ["2", "3", "4"]>) -> !graph.values
    %out2 = "graph.repeat"(%in2) ({
    ^bb0(%3: !graph.tensor<f32, ["B", "4"]>, %4: !graph.tensor<f32, ["3", "4"]>):
      %in5 = "builtin.unrealized_conversion_cast"(%3, %3, %4) : (!graph.tensor<f32, ["B", "4"]>, !graph.tensor<f32, ["B", "4"]>, !graph.tensor<f32, ["3", "4"]>) -> !graph.values
      %out5 = "graph.repeat"(%in5) ({
      ^bb0(%6: !graph.tensor<f32, ["B", "4"]>, %7: !graph.tensor<f32, ["B", "4"]>, %8: !graph.tensor<f32, ["4"]>):
        %9 = "graph.broadcast"(%8) {axes = array<i64: 1>} : (!graph.tensor<f32, ["4"]>) -> !graph.tensor<f32, ["B", "4"]>
        %10 = "graph.map"(%6, %9) {fn = "swiglu"} : (!graph.tensor<f32, ["B", "4"]>, !graph.tensor<f32, ["B", "4"]>) -> !graph.tensor<f32, ["B", "4"]>
        %11 = "graph.map"(%10, %7) {fn = "add"} : (!graph.tensor<f32, ["B", "4"]>, !graph.tensor<f32, ["B", "4"]>) -> !graph.tensor<f32, ["B", "4"]>
        "vector.yield"(%11, %6) : (!graph.tensor<f32, ["B", "4"]>, !graph.tensor<f32, ["B", "4"]>) -> ()
      }) {count = 3 : i64, carried = 1 : i64, constant = 1 : i64, reverse = false, sym_name = "body", arg_names = ["h", "c", "s"], arg_roles = ["inner", "inner", "inner"], output_names = ["h", "saved"], output_roles = ["inner", "inner"]} : (!graph.values) -> !graph.values
      %5:2 = "builtin.unrealized_conversion_cast"(%out5) : (!graph.values) -> (!graph.tensor<f32, ["B", "4"]>, !graph.tensor<f32, ["3", "B", "4"]>)
      "vector.yield"(%5#0) : (!graph.tensor<f32, ["B", "4"]>) -> ()
    }) {count = 2 : i64, carried = 1 : i64, constant = 0 : i64, reverse = true, sym_name = "body", arg_names = ["h", "layers.*.w"], arg_roles = ["inner", "param"], output_names = ["h"], output_roles = ["inner"]} : (!graph.values) -> !graph.values
    %2 = "builtin.unrealized_conversion_cast"(%out2) : (!graph.values) -> !graph.tensor<f32, ["B", "4"]>
    "vector.yield"(%2) : (!graph.tensor<f32, ["B", "4"]>) -> ()
  }) {sym_name = "loops", arg_names = ["h", "w"], arg_roles = ["input", "param"], output_names = ["h"], output_roles = ["result"]} : () -> ()
  "graph.func"() ({
  ^bb0(%0: !graph.tensor<f32, ["B", "T", "8"]>):
    %1 = "graph.map"(%0) {fn = "exp"} : (!graph.tensor<f32, ["B", "T", "8"]>) -> !graph.tensor<f32, ["B", "T", "8"]>
    %2 = "graph.topk"(%1) {k = 2 : i64} : (!graph.tensor<f32, ["B", "T", "8"]>) -> !graph.tensor<i32, ["B", "T", "2"]>
    %in3 = "builtin.unrealized_conversion_cast"(%0) : (!graph.tensor<f32, ["B", "T", "8"]>) -> !graph.values
    %out3 = "graph.fused"(%in3) ({
    ^bb0(%4: !graph.tensor<f32, ["B", "T", "8"]>):
      %5 = "graph.map"(%4) {fn = "exp"} : (!graph.tensor<f32, ["B", "T", "8"]>) -> !graph.tensor<f32, ["B", "T", "8"]>
      %6 = "graph.topk"(%5) {k = 2 : i64} : (!graph.tensor<f32, ["B", "T", "8"]>) -> !graph.tensor<i32, ["B", "T", "2"]>
      "vector.yield"(%6) : (!graph.tensor<i32, ["B", "T", "2"]>) -> ()
    }) {form = "select", sym_name = "body", arg_names = ["x0"], arg_roles = ["inner"], output_names = ["y0"], output_roles = ["inner"]} : (!graph.values) -> !graph.values
    %3 = "builtin.unrealized_conversion_cast"(%out3) : (!graph.values) -> !graph.tensor<i32, ["B", "T", "2"]>
    "vector.yield"(%3) : (!graph.tensor<i32, ["B", "T", "2"]>) -> ()
  }) {sym_name = "regions", arg_names = ["x"], arg_roles = ["input"], output_names = ["best"], output_roles = ["result"]} : () -> ()
}) {sym_name = "sample"} : () -> ()
