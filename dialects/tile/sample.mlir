"tile.kernel"() ({
^bb0(%v0: i64, %b0: !tile.buffer<f64, "2*T", "read", 8 : i64>, %b1: !tile.buffer<f32, "2*T", "read", 4 : i64>, %b2: !tile.buffer<bf16, "2*T", "read", 2 : i64>, %b3: !tile.buffer<f16, "2*T", "read", 2 : i64>, %b4: !tile.buffer<f8E4M3FN, "2*T", "read", 1 : i64>, %b5: !tile.buffer<i64, "2*T", "read", 8 : i64>, %b6: !tile.buffer<i32, "2*T", "read", 4 : i64>, %b7: !tile.buffer<i1, "2*T", "read", 1 : i64>, %b8: !tile.buffer<tf32, "2*T", "read", 4 : i64>, %b9: !tile.buffer<bf16, "T", "write", 2 : i64>, %b10: !tile.buffer<f32, "64", "read_write", 4 : i64>, %b11: !tile.buffer<i32, "4", "read", 4 : i64>, %s0: !tile.scratch<f32, 64 : i64>):
  %0 = "tile.load"(%b0, %v0) : (!tile.buffer<f64, "2*T", "read", 8 : i64>, i64) -> f64
  %v1 = "tile.let"(%0) {id = 1 : i64} : (f64) -> f64
  %1 = "tile.load"(%b1, %v0) : (!tile.buffer<f32, "2*T", "read", 4 : i64>, i64) -> f32
  %v2 = "tile.let"(%1) {id = 2 : i64} : (f32) -> f32
  %2 = "tile.load"(%b2, %v0) : (!tile.buffer<bf16, "2*T", "read", 2 : i64>, i64) -> f32
  %v3 = "tile.let"(%2) {id = 3 : i64} : (f32) -> f32
  %3 = "tile.load"(%b3, %v0) : (!tile.buffer<f16, "2*T", "read", 2 : i64>, i64) -> f32
  %v4 = "tile.let"(%3) {id = 4 : i64} : (f32) -> f32
  %4 = "tile.load"(%b4, %v0) : (!tile.buffer<f8E4M3FN, "2*T", "read", 1 : i64>, i64) -> f32
  %v5 = "tile.let"(%4) {id = 5 : i64} : (f32) -> f32
  %5 = "tile.load"(%b5, %v0) : (!tile.buffer<i64, "2*T", "read", 8 : i64>, i64) -> i64
  %v6 = "tile.let"(%5) {id = 6 : i64} : (i64) -> i64
  %6 = "tile.load"(%b6, %v0) : (!tile.buffer<i32, "2*T", "read", 4 : i64>, i64) -> i32
  %v7 = "tile.let"(%6) {id = 7 : i64} : (i32) -> i32
  %7 = "tile.load"(%b7, %v0) : (!tile.buffer<i1, "2*T", "read", 1 : i64>, i64) -> i1
  %v8 = "tile.let"(%7) {id = 8 : i64} : (i1) -> i1
  %8 = "tile.load"(%b8, %v0) : (!tile.buffer<tf32, "2*T", "read", 4 : i64>, i64) -> f32
  %v9 = "tile.let"(%8) {id = 9 : i64} : (f32) -> f32
  %9 = "tile.dim"() {index = 0 : i64} : () -> i64
  %10 = "tile.map"(%v0, %9) {fn = "add"} : (i64, i64) -> i64
  %11 = "tile.load"(%b2, %10) : (!tile.buffer<bf16, "2*T", "read", 2 : i64>, i64) -> f32
  %v10 = "tile.let"(%11) {id = 10 : i64} : (f32) -> f32
  %12 = "tile.const"() {value = 0x7FF8000000000000 : f64} : () -> f64
  %13 = "tile.cast"(%12) {to = f32} : (f64) -> f32
  %v12 = "tile.let"(%13) {id = 12 : i64} : (f32) -> f32
  %14 = "tile.const"() {value = 0xFFF0000000000000 : f64} : () -> f64
  %15 = "tile.cast"(%14) {to = f32} : (f64) -> f32
  %v14 = "tile.let"(%15) {id = 14 : i64} : (f32) -> f32
  %16 = "tile.const"() {value = -0.0 : f64} : () -> f64
  %17 = "tile.cast"(%16) {to = f32} : (f64) -> f32
  %v16 = "tile.let"(%17) {id = 16 : i64} : (f32) -> f32
  %18 = "tile.const"() {value = 1.0e-310 : f64} : () -> f64
  %19 = "tile.cast"(%18) {to = f32} : (f64) -> f32
  %v18 = "tile.let"(%19) {id = 18 : i64} : (f32) -> f32
  %20 = "tile.map"(%v10, %v10) {fn = "add"} : (f32, f32) -> f32
  %v19 = "tile.let"(%20) {id = 19 : i64} : (f32) -> f32
  %21 = "tile.map"(%v10, %v10) {fn = "sub"} : (f32, f32) -> f32
  %v20 = "tile.let"(%21) {id = 20 : i64} : (f32) -> f32
  %22 = "tile.map"(%v10, %v10) {fn = "mul"} : (f32, f32) -> f32
  %v21 = "tile.let"(%22) {id = 21 : i64} : (f32) -> f32
  %23 = "tile.map"(%v10, %v10) {fn = "div"} : (f32, f32) -> f32
  %v22 = "tile.let"(%23) {id = 22 : i64} : (f32) -> f32
  %24 = "tile.map"(%v0, %v0) {fn = "floor_div"} : (i64, i64) -> i64
  %v23 = "tile.let"(%24) {id = 23 : i64} : (i64) -> i64
  %25 = "tile.map"(%v0, %v0) {fn = "rem"} : (i64, i64) -> i64
  %v24 = "tile.let"(%25) {id = 24 : i64} : (i64) -> i64
  %26 = "tile.map"(%v10, %v10) {fn = "min"} : (f32, f32) -> f32
  %v25 = "tile.let"(%26) {id = 25 : i64} : (f32) -> f32
  %27 = "tile.map"(%v10, %v10) {fn = "max"} : (f32, f32) -> f32
  %v26 = "tile.let"(%27) {id = 26 : i64} : (f32) -> f32
  %28 = "tile.map"(%v10, %v10) {fn = "pow"} : (f32, f32) -> f32
  %v27 = "tile.let"(%28) {id = 27 : i64} : (f32) -> f32
  %29 = "tile.map"(%v10) {fn = "neg"} : (f32) -> f32
  %v28 = "tile.let"(%29) {id = 28 : i64} : (f32) -> f32
  %30 = "tile.map"(%v10) {fn = "abs"} : (f32) -> f32
  %v29 = "tile.let"(%30) {id = 29 : i64} : (f32) -> f32
  %31 = "tile.map"(%v10) {fn = "sign"} : (f32) -> f32
  %v30 = "tile.let"(%31) {id = 30 : i64} : (f32) -> f32
  %32 = "tile.map"(%v10) {fn = "floor"} : (f32) -> f32
  %v31 = "tile.let"(%32) {id = 31 : i64} : (f32) -> f32
  %33 = "tile.map"(%v10) {fn = "exp"} : (f32) -> f32
  %v32 = "tile.let"(%33) {id = 32 : i64} : (f32) -> f32
  %34 = "tile.map"(%v10) {fn = "log"} : (f32) -> f32
  %v33 = "tile.let"(%34) {id = 33 : i64} : (f32) -> f32
  %35 = "tile.map"(%v10) {fn = "sqrt"} : (f32) -> f32
  %v34 = "tile.let"(%35) {id = 34 : i64} : (f32) -> f32
  %36 = "tile.map"(%v10) {fn = "rsqrt"} : (f32) -> f32
  %v35 = "tile.let"(%36) {id = 35 : i64} : (f32) -> f32
  %37 = "tile.map"(%v10) {fn = "sin"} : (f32) -> f32
  %v36 = "tile.let"(%37) {id = 36 : i64} : (f32) -> f32
  %38 = "tile.map"(%v10) {fn = "cos"} : (f32) -> f32
  %v37 = "tile.let"(%38) {id = 37 : i64} : (f32) -> f32
  %39 = "tile.map"(%v10) {fn = "tanh"} : (f32) -> f32
  %v38 = "tile.let"(%39) {id = 38 : i64} : (f32) -> f32
  %40 = "tile.map"(%v10) {fn = "sigmoid"} : (f32) -> f32
  %v39 = "tile.let"(%40) {id = 39 : i64} : (f32) -> f32
  %41 = "tile.map"(%v10) {fn = "silu"} : (f32) -> f32
  %v40 = "tile.let"(%41) {id = 40 : i64} : (f32) -> f32
  %42 = "tile.map"(%v10, %v10) {fn = "swiglu"} : (f32, f32) -> f32
  %v41 = "tile.let"(%42) {id = 41 : i64} : (f32) -> f32
  %43 = "tile.map"(%v10) {fn = "softplus"} : (f32) -> f32
  %v42 = "tile.let"(%43) {id = 42 : i64} : (f32) -> f32
  %44 = "tile.map"(%v10) {fn = "erf"} : (f32) -> f32
  %v43 = "tile.let"(%44) {id = 43 : i64} : (f32) -> f32
  %45 = "tile.map"(%v10, %v10) {fn = "eq"} : (f32, f32) -> i1
  %v44 = "tile.let"(%45) {id = 44 : i64} : (i1) -> i1
  %46 = "tile.map"(%v10, %v10) {fn = "ne"} : (f32, f32) -> i1
  %v45 = "tile.let"(%46) {id = 45 : i64} : (i1) -> i1
  %47 = "tile.map"(%v10, %v10) {fn = "lt"} : (f32, f32) -> i1
  %v46 = "tile.let"(%47) {id = 46 : i64} : (i1) -> i1
  %48 = "tile.map"(%v10, %v10) {fn = "le"} : (f32, f32) -> i1
  %v47 = "tile.let"(%48) {id = 47 : i64} : (i1) -> i1
  %49 = "tile.cast"(%v10) {to = i1} : (f32) -> i1
  %50 = "tile.cast"(%v10) {to = i1} : (f32) -> i1
  %51 = "tile.map"(%49, %50) {fn = "and"} : (i1, i1) -> i1
  %v48 = "tile.let"(%51) {id = 48 : i64} : (i1) -> i1
  %52 = "tile.cast"(%v10) {to = i1} : (f32) -> i1
  %53 = "tile.cast"(%v10) {to = i1} : (f32) -> i1
  %54 = "tile.map"(%52, %53) {fn = "or"} : (i1, i1) -> i1
  %v49 = "tile.let"(%54) {id = 49 : i64} : (i1) -> i1
  %55 = "tile.cast"(%v10) {to = i1} : (f32) -> i1
  %56 = "tile.map"(%55) {fn = "not"} : (i1) -> i1
  %v50 = "tile.let"(%56) {id = 50 : i64} : (i1) -> i1
  %57 = "tile.map"(%v10) {fn = "is_finite"} : (f32) -> i1
  %v51 = "tile.let"(%57) {id = 51 : i64} : (i1) -> i1
  %58 = "tile.map"(%v10, %v10) {fn = "lt"} : (f32, f32) -> i1
  %59 = "tile.select"(%58, %v10, %v10) : (i1, f32, f32) -> f32
  %v52 = "tile.let"(%59) {id = 52 : i64} : (f32) -> f32
  %60 = "tile.cast"(%v10) {to = f64} : (f32) -> f64
  %v53 = "tile.let"(%60) {id = 53 : i64} : (f64) -> f64
  %61 = "tile.cast"(%v10) {to = f32} : (f32) -> f32
  %v54 = "tile.let"(%61) {id = 54 : i64} : (f32) -> f32
  %62 = "tile.cast"(%v10) {to = bf16} : (f32) -> f32
  %v55 = "tile.let"(%62) {id = 55 : i64} : (f32) -> f32
  %63 = "tile.cast"(%v10) {to = f16} : (f32) -> f32
  %v56 = "tile.let"(%63) {id = 56 : i64} : (f32) -> f32
  %64 = "tile.cast"(%v10) {to = f8E4M3FN} : (f32) -> f32
  %v57 = "tile.let"(%64) {id = 57 : i64} : (f32) -> f32
  %65 = "tile.cast"(%v10) {to = i64} : (f32) -> i64
  %v58 = "tile.let"(%65) {id = 58 : i64} : (i64) -> i64
  %66 = "tile.cast"(%v10) {to = i32} : (f32) -> i32
  %v59 = "tile.let"(%66) {id = 59 : i64} : (i32) -> i32
  %67 = "tile.cast"(%v10) {to = i1} : (f32) -> i1
  %v60 = "tile.let"(%67) {id = 60 : i64} : (i1) -> i1
  %68 = "tile.cast"(%v10) {to = tf32} : (f32) -> f32
  %v61 = "tile.let"(%68) {id = 61 : i64} : (f32) -> f32
  %69 = "tile.const"() {value = 1.0 : f64} : () -> f32
  %70 = "tile.order"(%69) : (f32) -> i32
  %v62 = "tile.let"(%70) {id = 62 : i64} : (i32) -> i32
  %v63 = "tile.var"(%v10) {id = 63 : i64} : (f32) -> !tile.place<f32>
  %71 = "tile.const"() {value = 0.0 : f64} : () -> i64
  %72 = "tile.dim"() {index = 0 : i64} : () -> i64
  "tile.for"(%71, %72) ({
  ^bb0(%v64: i64):
    %73 = "tile.load"(%b10, %v64) : (!tile.buffer<f32, "64", "read_write", 4 : i64>, i64) -> f32
    "tile.accumulate"(%v63, %73) {fn = "sum"} : (!tile.place<f32>, f32) -> ()
    "vector.yield"() : () -> ()
  }) {id = 64 : i64, kind = "vector"} : (i64, i64) -> ()
  %74 = "tile.const"() {value = 0.0 : f64} : () -> i64
  %75 = "tile.dim"() {index = 0 : i64} : () -> i64
  "tile.for"(%74, %75) ({
  ^bb0(%v65: i64):
    %76 = "tile.load"(%b10, %v65) : (!tile.buffer<f32, "64", "read_write", 4 : i64>, i64) -> f32
    "tile.accumulate"(%v63, %76) {fn = "prod"} : (!tile.place<f32>, f32) -> ()
    "vector.yield"() : () -> ()
  }) {id = 65 : i64, kind = "vector"} : (i64, i64) -> ()
  %77 = "tile.const"() {value = 0.0 : f64} : () -> i64
  %78 = "tile.dim"() {index = 0 : i64} : () -> i64
  "tile.for"(%77, %78) ({
  ^bb0(%v66: i64):
    %79 = "tile.load"(%b10, %v66) : (!tile.buffer<f32, "64", "read_write", 4 : i64>, i64) -> f32
    "tile.accumulate"(%v63, %79) {fn = "max"} : (!tile.place<f32>, f32) -> ()
    "vector.yield"() : () -> ()
  }) {id = 66 : i64, kind = "vector"} : (i64, i64) -> ()
  %80 = "tile.const"() {value = 0.0 : f64} : () -> i64
  %81 = "tile.dim"() {index = 0 : i64} : () -> i64
  "tile.for"(%80, %81) ({
  ^bb0(%v67: i64):
    %82 = "tile.load"(%b10, %v67) : (!tile.buffer<f32, "64", "read_write", 4 : i64>, i64) -> f32
    "tile.accumulate"(%v63, %82) {fn = "min"} : (!tile.place<f32>, f32) -> ()
    "vector.yield"() : () -> ()
  }) {id = 67 : i64, kind = "vector"} : (i64, i64) -> ()
  %83 = "tile.const"() {value = 0.0 : f64} : () -> i64
  %84 = "tile.dim"() {index = 0 : i64} : () -> i64
  "tile.for"(%83, %84) ({
  ^bb0(%v68: i64):
    %85 = "tile.dim"() {index = 0 : i64} : () -> i64
    %86 = "tile.map"(%v68, %85) {fn = "lt"} : (i64, i64) -> i1
    "tile.if"(%86) ({
      %87 = "tile.get"(%v63) : (!tile.place<f32>) -> f32
      "tile.store"(%b9, %v68, %87) : (!tile.buffer<bf16, "T", "write", 2 : i64>, i64, f32) -> ()
      "vector.yield"() : () -> ()
    }, {
      "vector.yield"() : () -> ()
    }) : (i1) -> ()
    "vector.yield"() : () -> ()
  }) {id = 68 : i64, kind = "serial"} : (i64, i64) -> ()
  %88 = "tile.const"() {value = 0.0 : f64} : () -> i64
  %89 = "tile.dim"() {index = 0 : i64} : () -> i64
  "tile.for"(%88, %89) ({
  ^bb0(%v69: i64):
    "tile.store"(%b9, %v69, %v10) : (!tile.buffer<bf16, "T", "write", 2 : i64>, i64, f32) -> ()
    "vector.yield"() : () -> ()
  }) {id = 69 : i64, kind = "parallel"} : (i64, i64) -> ()
  %90 = "tile.const"() {value = 0.0 : f64} : () -> i1
  "tile.if"(%90) ({
    "vector.yield"() : () -> ()
  }, {
    "vector.yield"() : () -> ()
  }) : (i1) -> ()
  "tile.while"() ({
    %91 = "tile.get"(%v63) : (!tile.place<f32>) -> f32
    %92 = "tile.map"(%91, %v10) {fn = "lt"} : (f32, f32) -> i1
    "vector.yield"(%92) : (i1) -> ()
  }, {
    %93 = "tile.get"(%v63) : (!tile.place<f32>) -> f32
    %94 = "tile.map"(%93, %v10) {fn = "add"} : (f32, f32) -> f32
    "tile.assign"(%v63, %94) : (!tile.place<f32>, f32) -> ()
    "vector.yield"() : () -> ()
  }) : () -> ()
  %95 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %96 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %97 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %98 = "tile.const"() {value = 0.0 : f64} : () -> i64
  %99 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %100 = "tile.const"() {value = 1.0 : f64} : () -> i64
  %101 = "tile.const"() {value = 0.0 : f64} : () -> i64
  %102 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %103 = "tile.const"() {value = 1.0 : f64} : () -> i64
  %104 = "tile.const"() {value = 0.0 : f64} : () -> i64
  %105 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %106 = "tile.const"() {value = 1.0 : f64} : () -> i64
  "tile.dot"(%b1, %s0, %b10, %95, %96, %97, %98, %99, %100, %101, %102, %103, %104, %105, %106) {accumulate = true} : (!tile.buffer<f32, "2*T", "read", 4 : i64>, !tile.scratch<f32, 64 : i64>, !tile.buffer<f32, "64", "read_write", 4 : i64>, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64) -> ()
  %107 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %108 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %109 = "tile.dim"() {index = 0 : i64} : () -> i64
  %110 = "tile.const"() {value = 0.0 : f64} : () -> i64
  %111 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %112 = "tile.const"() {value = 1.0 : f64} : () -> i64
  %113 = "tile.const"() {value = 0.0 : f64} : () -> i64
  %114 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %115 = "tile.const"() {value = 1.0 : f64} : () -> i64
  %116 = "tile.const"() {value = 0.0 : f64} : () -> i64
  %117 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %118 = "tile.const"() {value = 1.0 : f64} : () -> i64
  "tile.dot"(%b1, %b10, %s0, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116, %117, %118) {accumulate = false} : (!tile.buffer<f32, "2*T", "read", 4 : i64>, !tile.buffer<f32, "64", "read_write", 4 : i64>, !tile.scratch<f32, 64 : i64>, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64) -> ()
  %119 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %120 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %121 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %122 = "tile.const"() {value = 0.0 : f64} : () -> i64
  %123 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %124 = "tile.const"() {value = 1.0 : f64} : () -> i64
  %125 = "tile.const"() {value = 0.0 : f64} : () -> i64
  %126 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %127 = "tile.const"() {value = 1.0 : f64} : () -> i64
  %128 = "tile.const"() {value = 0.0 : f64} : () -> i64
  %129 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %130 = "tile.const"() {value = 1.0 : f64} : () -> i64
  %131 = "tile.dim"() {index = 0 : i64} : () -> i64
  "tile.dot_rows"(%b1, %s0, %b10, %119, %120, %121, %122, %123, %124, %125, %126, %127, %128, %129, %130, %131) {accumulate = true} : (!tile.buffer<f32, "2*T", "read", 4 : i64>, !tile.scratch<f32, 64 : i64>, !tile.buffer<f32, "64", "read_write", 4 : i64>, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64) -> ()
  %132 = "tile.dim"() {index = 0 : i64} : () -> i64
  %133 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %134 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %135 = "tile.const"() {value = 1.0 : f64} : () -> i64
  %136 = "tile.const"() {value = 0.0 : f64} : () -> i64
  "tile.copy"(%b10, %s0, %132, %133, %v0, %134, %135, %136) {rows = 4 : i64, cols = 16 : i64} : (!tile.buffer<f32, "64", "read_write", 4 : i64>, !tile.scratch<f32, 64 : i64>, i64, i64, i64, i64, i64, i64) -> ()
  %137 = "tile.dim"() {index = 0 : i64} : () -> i64
  %138 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %139 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %140 = "tile.const"() {value = 1.0 : f64} : () -> i64
  %141 = "tile.const"() {value = 0.0 : f64} : () -> i64
  "tile.copy_rows"(%b10, %s0, %b11, %137, %138, %v0, %139, %140, %141) {rows = 4 : i64, cols = 16 : i64} : (!tile.buffer<f32, "64", "read_write", 4 : i64>, !tile.scratch<f32, 64 : i64>, !tile.buffer<i32, "4", "read", 4 : i64>, i64, i64, i64, i64, i64, i64) -> ()
  %142 = "tile.const"() {value = 2.0 : f64} : () -> i64
  %143 = "tile.map"(%v0, %142) {fn = "lt"} : (i64, i64) -> i1
  %144 = "tile.dim"() {index = 0 : i64} : () -> i64
  %145 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %146 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %147 = "tile.const"() {value = 1.0 : f64} : () -> i64
  %148 = "tile.const"() {value = 0.0 : f64} : () -> i64
  "tile.copy_paired"(%b10, %s0, %143, %144, %145, %v0, %146, %147, %148) {rows = 4 : i64, cols = 16 : i64} : (!tile.buffer<f32, "64", "read_write", 4 : i64>, !tile.scratch<f32, 64 : i64>, i1, i64, i64, i64, i64, i64, i64) -> ()
  %149 = "tile.dim"() {index = 0 : i64} : () -> i64
  %150 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %151 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %152 = "tile.const"() {value = 1.0 : f64} : () -> i64
  %153 = "tile.const"() {value = 0.0 : f64} : () -> i64
  "tile.copy"(%s0, %b10, %149, %150, %v0, %151, %152, %153) {rows = 4 : i64, cols = 16 : i64} : (!tile.scratch<f32, 64 : i64>, !tile.buffer<f32, "64", "read_write", 4 : i64>, i64, i64, i64, i64, i64, i64) -> ()
  %154 = "tile.dim"() {index = 0 : i64} : () -> i64
  %155 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %156 = "tile.dim"() {index = 0 : i64} : () -> i64
  %157 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %158 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %159 = "tile.const"() {value = 1.0 : f64} : () -> i64
  %160 = "tile.const"() {value = 0.0 : f64} : () -> i64
  "tile.copy_runs"(%b10, %s0, %154, %155, %v0, %156, %157, %v0, %158, %159, %160) {rows = 4 : i64, cols = 16 : i64, run = 2 : i64} : (!tile.buffer<f32, "64", "read_write", 4 : i64>, !tile.scratch<f32, 64 : i64>, i64, i64, i64, i64, i64, i64, i64, i64, i64) -> ()
  %161 = "tile.dim"() {index = 0 : i64} : () -> i64
  %162 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %163 = "tile.dim"() {index = 0 : i64} : () -> i64
  %164 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %165 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %166 = "tile.const"() {value = 1.0 : f64} : () -> i64
  %167 = "tile.const"() {value = 0.0 : f64} : () -> i64
  "tile.copy_rows_of_runs"(%b10, %s0, %b11, %161, %162, %v0, %163, %164, %v0, %165, %166, %167) {rows = 4 : i64, cols = 16 : i64, run = 2 : i64} : (!tile.buffer<f32, "64", "read_write", 4 : i64>, !tile.scratch<f32, 64 : i64>, !tile.buffer<i32, "4", "read", 4 : i64>, i64, i64, i64, i64, i64, i64, i64, i64, i64) -> ()
  "vector.yield"() : () -> ()
}) {sym_name = "every_op", grid = "2*B*floordiv(T + 63, 64)", dims = ["T"], buffers = ["f64", "f32", "bf16", "f16", "e4m3", "i64", "i32", "bool", "tf32", "odd \"name\"", "z", "by"], scratch = ["s"], vars = [i64, f64, f32, f32, f32, f32, i64, i32, i1, f32, f32, f64, f32, f64, f32, f64, f32, f64, f32, f32, f32, f32, f32, i64, i64, f32, f32, f32, f32, f32, f32, f32, f32, f32, f32, f32, f32, f32, f32, f32, f32, f32, f32, f32, i1, i1, i1, i1, i1, i1, i1, i1, f32, f64, f32, f32, f32, f32, i64, i32, i1, f32, i32, f32, i64, i64, i64, i64, i64, i64]} : () -> ()
"tile.kernel"() ({
^bb0(%v0: i64, %b0: !tile.buffer<bf16, "32*B*T", "read", 2 : i64>, %b1: !tile.buffer<bf16, "16*B*S", "read", 2 : i64>, %b2: !tile.buffer<bf16, "32*B*S", "read", 2 : i64>, %b3: !tile.buffer<i32, "8*B*T", "read", 4 : i64>, %b4: !tile.buffer<bf16, "64*B*T", "write", 2 : i64>, %b5: !tile.buffer<f32, "4*B*T", "write", 4 : i64>, %s0: !tile.scratch<i1, 32 : i64>, %s1: !tile.scratch<f32, 128 : i64>, %s2: !tile.scratch<i1, 8 : i64>, %s3: !tile.scratch<f32, 64 : i64>, %s4: !tile.scratch<f32, 64 : i64>, %s5: !tile.scratch<f32, 128 : i64>, %s6: !tile.scratch<f32, 8 : i64>, %s7: !tile.scratch<f32, 8 : i64>, %s8: !tile.scratch<f32, 8 : i64>, %s9: !tile.scratch<f32, 8 : i64>):
  %0 = "tile.dim"() {index = 0 : i64} : () -> i64
  %1 = "tile.map"(%v0, %0) {fn = "floor_div"} : (i64, i64) -> i64
  %v1 = "tile.let"(%1) {id = 1 : i64} : (i64) -> i64
  %2 = "tile.dim"() {index = 0 : i64} : () -> i64
  %3 = "tile.map"(%v0, %2) {fn = "rem"} : (i64, i64) -> i64
  %4 = "tile.const"() {value = 4.0 : f64} : () -> i64
  %5 = "tile.map"(%3, %4) {fn = "mul"} : (i64, i64) -> i64
  %v2 = "tile.let"(%5) {id = 2 : i64} : (i64) -> i64
  %6 = "tile.const"() {value = 2.0 : f64} : () -> i64
  %7 = "tile.map"(%v1, %6) {fn = "floor_div"} : (i64, i64) -> i64
  %v3 = "tile.let"(%7) {id = 3 : i64} : (i64) -> i64
  %8 = "tile.const"() {value = 2.0 : f64} : () -> i64
  %9 = "tile.map"(%v1, %8) {fn = "rem"} : (i64, i64) -> i64
  %v4 = "tile.let"(%9) {id = 4 : i64} : (i64) -> i64
  %10 = "tile.const"() {value = 4.0 : f64} : () -> i64
  %11 = "tile.dim"() {index = 1 : i64} : () -> i64
  %12 = "tile.map"(%11, %v2) {fn = "sub"} : (i64, i64) -> i64
  %13 = "tile.map"(%10, %12) {fn = "min"} : (i64, i64) -> i64
  %v5 = "tile.let"(%13) {id = 5 : i64} : (i64) -> i64
  %14 = "tile.const"() {value = 0.0 : f64} : () -> i64
  %15 = "tile.const"() {value = 64.0 : f64} : () -> i64
  "tile.for"(%14, %15) ({
  ^bb0(%v6: i64):
    %16 = "tile.const"() {value = 0.0 : f64} : () -> f32
    "tile.store"(%s3, %v6, %16) : (!tile.scratch<f32, 64 : i64>, i64, f32) -> ()
    "vector.yield"() : () -> ()
  }) {id = 6 : i64, kind = "vector"} : (i64, i64) -> ()
  %17 = "tile.const"() {value = 0.0 : f64} : () -> i64
  %18 = "tile.const"() {value = 128.0 : f64} : () -> i64
  "tile.for"(%17, %18) ({
  ^bb0(%v7: i64):
    %19 = "tile.const"() {value = 0.0 : f64} : () -> f32
    "tile.store"(%s5, %v7, %19) : (!tile.scratch<f32, 128 : i64>, i64, f32) -> ()
    "vector.yield"() : () -> ()
  }) {id = 7 : i64, kind = "vector"} : (i64, i64) -> ()
  %20 = "tile.const"() {value = 0.0 : f64} : () -> i64
  %21 = "tile.const"() {value = 8.0 : f64} : () -> i64
  "tile.for"(%20, %21) ({
  ^bb0(%v8: i64):
    %22 = "tile.const"() {value = 0xFFF0000000000000 : f64} : () -> f32
    "tile.store"(%s6, %v8, %22) : (!tile.scratch<f32, 8 : i64>, i64, f32) -> ()
    "vector.yield"() : () -> ()
  }) {id = 8 : i64, kind = "vector"} : (i64, i64) -> ()
  %23 = "tile.const"() {value = 0.0 : f64} : () -> i64
  %24 = "tile.const"() {value = 8.0 : f64} : () -> i64
  "tile.for"(%23, %24) ({
  ^bb0(%v9: i64):
    %25 = "tile.const"() {value = 0.0 : f64} : () -> f32
    "tile.store"(%s9, %v9, %25) : (!tile.scratch<f32, 8 : i64>, i64, f32) -> ()
    "vector.yield"() : () -> ()
  }) {id = 9 : i64, kind = "vector"} : (i64, i64) -> ()
  %26 = "tile.const"() {value = 0.0 : f64} : () -> i64
  %27 = "tile.const"() {value = 32.0 : f64} : () -> i64
  "tile.for"(%26, %27) ({
  ^bb0(%v10: i64):
    %28 = "tile.const"() {value = 0.0 : f64} : () -> i1
    "tile.store"(%s0, %v10, %28) : (!tile.scratch<i1, 32 : i64>, i64, i1) -> ()
    "vector.yield"() : () -> ()
  }) {id = 10 : i64, kind = "vector"} : (i64, i64) -> ()
  %29 = "tile.const"() {value = 0.0 : f64} : () -> i64
  %30 = "tile.const"() {value = 2.0 : f64} : () -> i64
  "tile.for"(%29, %30) ({
  ^bb0(%v11: i64):
    %31 = "tile.const"() {value = 0.0 : f64} : () -> i64
    "tile.for"(%31, %v5) ({
    ^bb0(%v12: i64):
      %32 = "tile.const"() {value = 4.0 : f64} : () -> i64
      %33 = "tile.map"(%v11, %32) {fn = "mul"} : (i64, i64) -> i64
      %34 = "tile.map"(%33, %v12) {fn = "add"} : (i64, i64) -> i64
      %v13 = "tile.let"(%34) {id = 13 : i64} : (i64) -> i64
      %35 = "tile.dim"() {index = 1 : i64} : () -> i64
      %36 = "tile.map"(%v3, %35) {fn = "mul"} : (i64, i64) -> i64
      %37 = "tile.map"(%v2, %v12) {fn = "add"} : (i64, i64) -> i64
      %38 = "tile.map"(%36, %37) {fn = "add"} : (i64, i64) -> i64
      %39 = "tile.const"() {value = 4.0 : f64} : () -> i64
      %40 = "tile.map"(%38, %39) {fn = "mul"} : (i64, i64) -> i64
      %41 = "tile.const"() {value = 2.0 : f64} : () -> i64
      %42 = "tile.map"(%v4, %41) {fn = "mul"} : (i64, i64) -> i64
      %43 = "tile.map"(%40, %42) {fn = "add"} : (i64, i64) -> i64
      %44 = "tile.map"(%43, %v11) {fn = "add"} : (i64, i64) -> i64
      %v14 = "tile.let"(%44) {id = 14 : i64} : (i64) -> i64
      %45 = "tile.const"() {value = 0.0 : f64} : () -> i64
      %46 = "tile.const"() {value = 8.0 : f64} : () -> i64
      "tile.for"(%45, %46) ({
      ^bb0(%v15: i64):
        %47 = "tile.const"() {value = 8.0 : f64} : () -> i64
        %48 = "tile.map"(%v15, %47) {fn = "mul"} : (i64, i64) -> i64
        %49 = "tile.map"(%48, %v13) {fn = "add"} : (i64, i64) -> i64
        %50 = "tile.const"() {value = 8.0 : f64} : () -> i64
        %51 = "tile.map"(%v14, %50) {fn = "mul"} : (i64, i64) -> i64
        %52 = "tile.map"(%51, %v15) {fn = "add"} : (i64, i64) -> i64
        %53 = "tile.load"(%b0, %52) : (!tile.buffer<bf16, "32*B*T", "read", 2 : i64>, i64) -> f32
        %54 = "tile.const"() {value = 0.25 : f64} : () -> f32
        %55 = "tile.map"(%53, %54) {fn = "mul"} : (f32, f32) -> f32
        "tile.store"(%s3, %49, %55) : (!tile.scratch<f32, 64 : i64>, i64, f32) -> ()
        "vector.yield"() : () -> ()
      }) {id = 15 : i64, kind = "vector"} : (i64, i64) -> ()
      "vector.yield"() : () -> ()
    }) {id = 12 : i64, kind = "serial"} : (i64, i64) -> ()
    "vector.yield"() : () -> ()
  }) {id = 11 : i64, kind = "serial"} : (i64, i64) -> ()
  %56 = "tile.map"(%v2, %v5) {fn = "add"} : (i64, i64) -> i64
  %57 = "tile.const"() {value = 1.0 : f64} : () -> i64
  %58 = "tile.map"(%56, %57) {fn = "sub"} : (i64, i64) -> i64
  %v16 = "tile.let"(%58) {id = 16 : i64} : (i64) -> i64
  %59 = "tile.const"() {value = 0.0 : f64} : () -> i64
  %60 = "tile.dim"() {index = 2 : i64} : () -> i64
  %61 = "tile.dim"() {index = 1 : i64} : () -> i64
  %62 = "tile.map"(%60, %61) {fn = "sub"} : (i64, i64) -> i64
  %63 = "tile.map"(%v2, %62) {fn = "add"} : (i64, i64) -> i64
  %64 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %65 = "tile.map"(%63, %64) {fn = "sub"} : (i64, i64) -> i64
  %66 = "tile.map"(%59, %65) {fn = "max"} : (i64, i64) -> i64
  %67 = "tile.const"() {value = 0.0 : f64} : () -> i64
  %68 = "tile.map"(%66, %67) {fn = "max"} : (i64, i64) -> i64
  %v17 = "tile.let"(%68) {id = 17 : i64} : (i64) -> i64
  %69 = "tile.dim"() {index = 2 : i64} : () -> i64
  %70 = "tile.dim"() {index = 1 : i64} : () -> i64
  %71 = "tile.map"(%69, %70) {fn = "sub"} : (i64, i64) -> i64
  %72 = "tile.map"(%v16, %71) {fn = "add"} : (i64, i64) -> i64
  %73 = "tile.const"() {value = 1.0 : f64} : () -> i64
  %74 = "tile.map"(%72, %73) {fn = "add"} : (i64, i64) -> i64
  %75 = "tile.dim"() {index = 2 : i64} : () -> i64
  %76 = "tile.map"(%74, %75) {fn = "min"} : (i64, i64) -> i64
  %77 = "tile.dim"() {index = 2 : i64} : () -> i64
  %78 = "tile.map"(%76, %77) {fn = "min"} : (i64, i64) -> i64
  %v18 = "tile.let"(%78) {id = 18 : i64} : (i64) -> i64
  %79 = "tile.dim"() {index = 2 : i64} : () -> i64
  %80 = "tile.dim"() {index = 1 : i64} : () -> i64
  %81 = "tile.map"(%79, %80) {fn = "sub"} : (i64, i64) -> i64
  %82 = "tile.map"(%v16, %81) {fn = "add"} : (i64, i64) -> i64
  %83 = "tile.const"() {value = 1.0 : f64} : () -> i64
  %84 = "tile.map"(%82, %83) {fn = "add"} : (i64, i64) -> i64
  %85 = "tile.dim"() {index = 2 : i64} : () -> i64
  %86 = "tile.map"(%84, %85) {fn = "min"} : (i64, i64) -> i64
  %87 = "tile.dim"() {index = 2 : i64} : () -> i64
  %88 = "tile.map"(%86, %87) {fn = "min"} : (i64, i64) -> i64
  %v19 = "tile.let"(%88) {id = 19 : i64} : (i64) -> i64
  %89 = "tile.const"() {value = 0.0 : f64} : () -> i64
  %90 = "tile.map"(%89, %v17) {fn = "lt"} : (i64, i64) -> i1
  %v20 = "tile.let"(%90) {id = 20 : i64} : (i1) -> i1
  %91 = "tile.const"() {value = 0.0 : f64} : () -> i64
  %92 = "tile.select"(%v20, %91, %v17) : (i1, i64, i64) -> i64
  %v21 = "tile.let"(%92) {id = 21 : i64} : (i64) -> i64
  %93 = "tile.select"(%v20, %v19, %v18) : (i1, i64, i64) -> i64
  %v22 = "tile.let"(%93) {id = 22 : i64} : (i64) -> i64
  %94 = "tile.map"(%v22, %v21) {fn = "sub"} : (i64, i64) -> i64
  %95 = "tile.const"() {value = 7.0 : f64} : () -> i64
  %96 = "tile.map"(%94, %95) {fn = "add"} : (i64, i64) -> i64
  %97 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %98 = "tile.map"(%96, %97) {fn = "floor_div"} : (i64, i64) -> i64
  %99 = "tile.const"() {value = 0.0 : f64} : () -> i64
  %100 = "tile.map"(%98, %99) {fn = "max"} : (i64, i64) -> i64
  %v23 = "tile.let"(%100) {id = 23 : i64} : (i64) -> i64
  %101 = "tile.const"() {value = 0.0 : f64} : () -> i64
  %102 = "tile.select"(%v20, %v17, %101) : (i1, i64, i64) -> i64
  %103 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %104 = "tile.map"(%v23, %103) {fn = "mul"} : (i64, i64) -> i64
  %105 = "tile.map"(%v21, %104) {fn = "add"} : (i64, i64) -> i64
  %106 = "tile.map"(%102, %105) {fn = "max"} : (i64, i64) -> i64
  %v24 = "tile.let"(%106) {id = 24 : i64} : (i64) -> i64
  %107 = "tile.select"(%v20, %v18, %v19) : (i1, i64, i64) -> i64
  %108 = "tile.map"(%107, %v24) {fn = "sub"} : (i64, i64) -> i64
  %109 = "tile.const"() {value = 7.0 : f64} : () -> i64
  %110 = "tile.map"(%108, %109) {fn = "add"} : (i64, i64) -> i64
  %111 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %112 = "tile.map"(%110, %111) {fn = "floor_div"} : (i64, i64) -> i64
  %113 = "tile.const"() {value = 0.0 : f64} : () -> i64
  %114 = "tile.map"(%112, %113) {fn = "max"} : (i64, i64) -> i64
  %115 = "tile.map"(%v23, %114) {fn = "add"} : (i64, i64) -> i64
  %v25 = "tile.let"(%115) {id = 25 : i64} : (i64) -> i64
  %116 = "tile.map"(%v18, %v19) {fn = "max"} : (i64, i64) -> i64
  %v26 = "tile.let"(%116) {id = 26 : i64} : (i64) -> i64
  %117 = "tile.const"() {value = 0.0 : f64} : () -> i64
  "tile.for"(%117, %v25) ({
  ^bb0(%v27: i64):
    %118 = "tile.map"(%v27, %v23) {fn = "lt"} : (i64, i64) -> i1
    %119 = "tile.const"() {value = 8.0 : f64} : () -> i64
    %120 = "tile.map"(%v27, %119) {fn = "mul"} : (i64, i64) -> i64
    %121 = "tile.map"(%v21, %120) {fn = "add"} : (i64, i64) -> i64
    %122 = "tile.map"(%v27, %v23) {fn = "sub"} : (i64, i64) -> i64
    %123 = "tile.const"() {value = 8.0 : f64} : () -> i64
    %124 = "tile.map"(%122, %123) {fn = "mul"} : (i64, i64) -> i64
    %125 = "tile.map"(%v24, %124) {fn = "add"} : (i64, i64) -> i64
    %126 = "tile.select"(%118, %121, %125) : (i1, i64, i64) -> i64
    %v28 = "tile.let"(%126) {id = 28 : i64} : (i64) -> i64
    %127 = "tile.map"(%v26, %v28) {fn = "sub"} : (i64, i64) -> i64
    %128 = "tile.const"() {value = 8.0 : f64} : () -> i64
    %129 = "tile.map"(%127, %128) {fn = "min"} : (i64, i64) -> i64
    %v29 = "tile.let"(%129) {id = 29 : i64} : (i64) -> i64
    %130 = "tile.const"() {value = 0.0 : f64} : () -> i64
    %v30 = "tile.var"(%130) {id = 30 : i64} : (i64) -> !tile.place<i64>
    %131 = "tile.const"() {value = 0.0 : f64} : () -> i64
    "tile.for"(%131, %v29) ({
    ^bb0(%v31: i64):
      %132 = "tile.map"(%v28, %v31) {fn = "add"} : (i64, i64) -> i64
      %v32 = "tile.let"(%132) {id = 32 : i64} : (i64) -> i64
      %133 = "tile.const"() {value = 0.0 : f64} : () -> i64
      "tile.for"(%133, %v5) ({
      ^bb0(%v33: i64):
        %134 = "tile.map"(%v2, %v33) {fn = "add"} : (i64, i64) -> i64
        %v34 = "tile.let"(%134) {id = 34 : i64} : (i64) -> i64
        %135 = "tile.const"() {value = 8.0 : f64} : () -> i64
        %136 = "tile.map"(%v32, %135) {fn = "floor_div"} : (i64, i64) -> i64
        %v35 = "tile.let"(%136) {id = 35 : i64} : (i64) -> i64
        %137 = "tile.dim"() {index = 1 : i64} : () -> i64
        %138 = "tile.map"(%v3, %137) {fn = "mul"} : (i64, i64) -> i64
        %139 = "tile.map"(%138, %v34) {fn = "add"} : (i64, i64) -> i64
        %140 = "tile.const"() {value = 2.0 : f64} : () -> i64
        %141 = "tile.map"(%139, %140) {fn = "mul"} : (i64, i64) -> i64
        %142 = "tile.map"(%141, %v4) {fn = "add"} : (i64, i64) -> i64
        %143 = "tile.const"() {value = 4.0 : f64} : () -> i64
        %144 = "tile.map"(%142, %143) {fn = "mul"} : (i64, i64) -> i64
        %v36 = "tile.let"(%144) {id = 36 : i64} : (i64) -> i64
        %145 = "tile.const"() {value = 0.0 : f64} : () -> i64
        %v37 = "tile.var"(%145) {id = 37 : i64} : (i64) -> !tile.place<i64>
        %146 = "tile.const"() {value = 0.0 : f64} : () -> i64
        %147 = "tile.const"() {value = 4.0 : f64} : () -> i64
        "tile.for"(%146, %147) ({
        ^bb0(%v38: i64):
          %148 = "tile.map"(%v36, %v38) {fn = "add"} : (i64, i64) -> i64
          %149 = "tile.load"(%b3, %148) : (!tile.buffer<i32, "8*B*T", "read", 4 : i64>, i64) -> i32
          %150 = "tile.cast"(%149) {to = i64} : (i32) -> i64
          %151 = "tile.map"(%150, %v35) {fn = "eq"} : (i64, i64) -> i1
          %152 = "tile.cast"(%151) {to = i64} : (i1) -> i64
          "tile.accumulate"(%v37, %152) {fn = "sum"} : (!tile.place<i64>, i64) -> ()
          "vector.yield"() : () -> ()
        }) {id = 38 : i64, kind = "vector"} : (i64, i64) -> ()
        %153 = "tile.dim"() {index = 2 : i64} : () -> i64
        %154 = "tile.dim"() {index = 1 : i64} : () -> i64
        %155 = "tile.map"(%153, %154) {fn = "sub"} : (i64, i64) -> i64
        %156 = "tile.map"(%v34, %155) {fn = "add"} : (i64, i64) -> i64
        %157 = "tile.map"(%v32, %156) {fn = "le"} : (i64, i64) -> i1
        %158 = "tile.dim"() {index = 2 : i64} : () -> i64
        %159 = "tile.dim"() {index = 1 : i64} : () -> i64
        %160 = "tile.map"(%158, %159) {fn = "sub"} : (i64, i64) -> i64
        %161 = "tile.map"(%v34, %160) {fn = "add"} : (i64, i64) -> i64
        %162 = "tile.const"() {value = 9.0 : f64} : () -> i64
        %163 = "tile.map"(%161, %162) {fn = "sub"} : (i64, i64) -> i64
        %164 = "tile.map"(%163, %v32) {fn = "lt"} : (i64, i64) -> i1
        %165 = "tile.const"() {value = 0.0 : f64} : () -> i64
        %166 = "tile.get"(%v37) : (!tile.place<i64>) -> i64
        %167 = "tile.map"(%165, %166) {fn = "lt"} : (i64, i64) -> i1
        %168 = "tile.map"(%164, %167) {fn = "or"} : (i1, i1) -> i1
        %169 = "tile.map"(%157, %168) {fn = "and"} : (i1, i1) -> i1
        %v39 = "tile.let"(%169) {id = 39 : i64} : (i1) -> i1
        %170 = "tile.const"() {value = 4.0 : f64} : () -> i64
        %171 = "tile.map"(%v31, %170) {fn = "mul"} : (i64, i64) -> i64
        %172 = "tile.map"(%171, %v33) {fn = "add"} : (i64, i64) -> i64
        "tile.store"(%s0, %172, %v39) : (!tile.scratch<i1, 32 : i64>, i64, i1) -> ()
        %173 = "tile.cast"(%v39) {to = i64} : (i1) -> i64
        "tile.accumulate"(%v30, %173) {fn = "sum"} : (!tile.place<i64>, i64) -> ()
        "vector.yield"() : () -> ()
      }) {id = 33 : i64, kind = "serial"} : (i64, i64) -> ()
      "vector.yield"() : () -> ()
    }) {id = 31 : i64, kind = "serial"} : (i64, i64) -> ()
    %174 = "tile.const"() {value = 0.0 : f64} : () -> i64
    %175 = "tile.get"(%v30) : (!tile.place<i64>) -> i64
    %176 = "tile.map"(%174, %175) {fn = "lt"} : (i64, i64) -> i1
    "tile.if"(%176) ({
      %177 = "tile.dim"() {index = 2 : i64} : () -> i64
      %178 = "tile.map"(%v3, %177) {fn = "mul"} : (i64, i64) -> i64
      %179 = "tile.map"(%178, %v28) {fn = "add"} : (i64, i64) -> i64
      %180 = "tile.const"() {value = 2.0 : f64} : () -> i64
      %181 = "tile.map"(%179, %180) {fn = "mul"} : (i64, i64) -> i64
      %182 = "tile.map"(%181, %v4) {fn = "add"} : (i64, i64) -> i64
      %183 = "tile.const"() {value = 8.0 : f64} : () -> i64
      %184 = "tile.map"(%182, %183) {fn = "mul"} : (i64, i64) -> i64
      %v40 = "tile.let"(%184) {id = 40 : i64} : (i64) -> i64
      %185 = "tile.const"() {value = 8.0 : f64} : () -> i64
      %186 = "tile.const"() {value = 8.0 : f64} : () -> i64
      %187 = "tile.const"() {value = 16.0 : f64} : () -> i64
      %188 = "tile.const"() {value = 1.0 : f64} : () -> i64
      %189 = "tile.const"() {value = 0.0 : f64} : () -> i64
      %190 = "tile.const"() {value = 8.0 : f64} : () -> i64
      %191 = "tile.const"() {value = 1.0 : f64} : () -> i64
      %192 = "tile.const"() {value = 0.0 : f64} : () -> i64
      %193 = "tile.const"() {value = 8.0 : f64} : () -> i64
      %194 = "tile.const"() {value = 1.0 : f64} : () -> i64
      "tile.dot"(%b1, %s3, %s4, %v29, %185, %186, %v40, %187, %188, %189, %190, %191, %192, %193, %194) {accumulate = false} : (!tile.buffer<bf16, "16*B*S", "read", 2 : i64>, !tile.scratch<f32, 64 : i64>, !tile.scratch<f32, 64 : i64>, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64) -> ()
      %195 = "tile.const"() {value = 0.0 : f64} : () -> i64
      "tile.for"(%195, %v29) ({
      ^bb0(%v41: i64):
        %196 = "tile.const"() {value = 0.0 : f64} : () -> i64
        %197 = "tile.const"() {value = 2.0 : f64} : () -> i64
        "tile.for"(%196, %197) ({
        ^bb0(%v42: i64):
          %198 = "tile.const"() {value = 8.0 : f64} : () -> i64
          %199 = "tile.map"(%v41, %198) {fn = "mul"} : (i64, i64) -> i64
          %200 = "tile.const"() {value = 4.0 : f64} : () -> i64
          %201 = "tile.map"(%v42, %200) {fn = "mul"} : (i64, i64) -> i64
          %202 = "tile.map"(%199, %201) {fn = "add"} : (i64, i64) -> i64
          %v43 = "tile.let"(%202) {id = 43 : i64} : (i64) -> i64
          %203 = "tile.const"() {value = 0.0 : f64} : () -> i64
          %204 = "tile.const"() {value = 4.0 : f64} : () -> i64
          "tile.for"(%203, %204) ({
          ^bb0(%v44: i64):
            %205 = "tile.map"(%v43, %v44) {fn = "add"} : (i64, i64) -> i64
            %v45 = "tile.let"(%205) {id = 45 : i64} : (i64) -> i64
            %206 = "tile.const"() {value = 4.0 : f64} : () -> i64
            %207 = "tile.map"(%v41, %206) {fn = "mul"} : (i64, i64) -> i64
            %208 = "tile.map"(%207, %v44) {fn = "add"} : (i64, i64) -> i64
            %209 = "tile.load"(%s0, %208) : (!tile.scratch<i1, 32 : i64>, i64) -> i1
            %210 = "tile.load"(%s4, %v45) : (!tile.scratch<f32, 64 : i64>, i64) -> f32
            %211 = "tile.const"() {value = 0xFFF0000000000000 : f64} : () -> f32
            %212 = "tile.select"(%209, %210, %211) : (i1, f32, f32) -> f32
            "tile.store"(%s4, %v45, %212) : (!tile.scratch<f32, 64 : i64>, i64, f32) -> ()
            "vector.yield"() : () -> ()
          }) {id = 44 : i64, kind = "vector"} : (i64, i64) -> ()
          "vector.yield"() : () -> ()
        }) {id = 42 : i64, kind = "serial"} : (i64, i64) -> ()
        "vector.yield"() : () -> ()
      }) {id = 41 : i64, kind = "serial"} : (i64, i64) -> ()
      %213 = "tile.const"() {value = 0.0 : f64} : () -> i64
      %214 = "tile.const"() {value = 8.0 : f64} : () -> i64
      "tile.for"(%213, %214) ({
      ^bb0(%v46: i64):
        %215 = "tile.load"(%s6, %v46) : (!tile.scratch<f32, 8 : i64>, i64) -> f32
        "tile.store"(%s7, %v46, %215) : (!tile.scratch<f32, 8 : i64>, i64, f32) -> ()
        "vector.yield"() : () -> ()
      }) {id = 46 : i64, kind = "vector"} : (i64, i64) -> ()
      %216 = "tile.const"() {value = 0.0 : f64} : () -> i64
      "tile.for"(%216, %v29) ({
      ^bb0(%v47: i64):
        %217 = "tile.const"() {value = 0.0 : f64} : () -> i64
        %218 = "tile.const"() {value = 8.0 : f64} : () -> i64
        "tile.for"(%217, %218) ({
        ^bb0(%v48: i64):
          %219 = "tile.load"(%s7, %v48) : (!tile.scratch<f32, 8 : i64>, i64) -> f32
          %220 = "tile.const"() {value = 8.0 : f64} : () -> i64
          %221 = "tile.map"(%v47, %220) {fn = "mul"} : (i64, i64) -> i64
          %222 = "tile.map"(%221, %v48) {fn = "add"} : (i64, i64) -> i64
          %223 = "tile.load"(%s4, %222) : (!tile.scratch<f32, 64 : i64>, i64) -> f32
          %224 = "tile.map"(%219, %223) {fn = "max"} : (f32, f32) -> f32
          "tile.store"(%s7, %v48, %224) : (!tile.scratch<f32, 8 : i64>, i64, f32) -> ()
          "vector.yield"() : () -> ()
        }) {id = 48 : i64, kind = "vector"} : (i64, i64) -> ()
        "vector.yield"() : () -> ()
      }) {id = 47 : i64, kind = "serial"} : (i64, i64) -> ()
      %225 = "tile.const"() {value = 0.0 : f64} : () -> i64
      %226 = "tile.const"() {value = 8.0 : f64} : () -> i64
      "tile.for"(%225, %226) ({
      ^bb0(%v49: i64):
        %227 = "tile.load"(%s7, %v49) : (!tile.scratch<f32, 8 : i64>, i64) -> f32
        %v50 = "tile.let"(%227) {id = 50 : i64} : (f32) -> f32
        %228 = "tile.const"() {value = 0xFFF0000000000000 : f64} : () -> f32
        %229 = "tile.map"(%v50, %228) {fn = "eq"} : (f32, f32) -> i1
        %230 = "tile.const"() {value = 0.0 : f64} : () -> f32
        %231 = "tile.select"(%229, %230, %v50) : (i1, f32, f32) -> f32
        %v51 = "tile.let"(%231) {id = 51 : i64} : (f32) -> f32
        %232 = "tile.load"(%s6, %v49) : (!tile.scratch<f32, 8 : i64>, i64) -> f32
        %233 = "tile.map"(%232, %v51) {fn = "sub"} : (f32, f32) -> f32
        %234 = "tile.map"(%233) {fn = "exp"} : (f32) -> f32
        %v52 = "tile.let"(%234) {id = 52 : i64} : (f32) -> f32
        "tile.store"(%s6, %v49, %v50) : (!tile.scratch<f32, 8 : i64>, i64, f32) -> ()
        "tile.store"(%s7, %v49, %v51) : (!tile.scratch<f32, 8 : i64>, i64, f32) -> ()
        "tile.store"(%s8, %v49, %v52) : (!tile.scratch<f32, 8 : i64>, i64, f32) -> ()
        %235 = "tile.load"(%s9, %v49) : (!tile.scratch<f32, 8 : i64>, i64) -> f32
        %236 = "tile.map"(%235, %v52) {fn = "mul"} : (f32, f32) -> f32
        "tile.store"(%s9, %v49, %236) : (!tile.scratch<f32, 8 : i64>, i64, f32) -> ()
        "vector.yield"() : () -> ()
      }) {id = 49 : i64, kind = "vector"} : (i64, i64) -> ()
      %237 = "tile.const"() {value = 0.0 : f64} : () -> i64
      "tile.for"(%237, %v29) ({
      ^bb0(%v53: i64):
        %238 = "tile.const"() {value = 0.0 : f64} : () -> i64
        %239 = "tile.const"() {value = 8.0 : f64} : () -> i64
        "tile.for"(%238, %239) ({
        ^bb0(%v54: i64):
          %240 = "tile.const"() {value = 8.0 : f64} : () -> i64
          %241 = "tile.map"(%v53, %240) {fn = "mul"} : (i64, i64) -> i64
          %242 = "tile.map"(%241, %v54) {fn = "add"} : (i64, i64) -> i64
          %v55 = "tile.let"(%242) {id = 55 : i64} : (i64) -> i64
          %243 = "tile.load"(%s4, %v55) : (!tile.scratch<f32, 64 : i64>, i64) -> f32
          %244 = "tile.load"(%s7, %v54) : (!tile.scratch<f32, 8 : i64>, i64) -> f32
          %245 = "tile.map"(%243, %244) {fn = "sub"} : (f32, f32) -> f32
          %246 = "tile.map"(%245) {fn = "exp"} : (f32) -> f32
          %v56 = "tile.let"(%246) {id = 56 : i64} : (f32) -> f32
          "tile.store"(%s4, %v55, %v56) : (!tile.scratch<f32, 64 : i64>, i64, f32) -> ()
          %247 = "tile.load"(%s9, %v54) : (!tile.scratch<f32, 8 : i64>, i64) -> f32
          %248 = "tile.map"(%247, %v56) {fn = "add"} : (f32, f32) -> f32
          "tile.store"(%s9, %v54, %248) : (!tile.scratch<f32, 8 : i64>, i64, f32) -> ()
          "vector.yield"() : () -> ()
        }) {id = 54 : i64, kind = "vector"} : (i64, i64) -> ()
        "vector.yield"() : () -> ()
      }) {id = 53 : i64, kind = "serial"} : (i64, i64) -> ()
      %249 = "tile.const"() {value = 0.0 : f64} : () -> i64
      %250 = "tile.const"() {value = 8.0 : f64} : () -> i64
      "tile.for"(%249, %250) ({
      ^bb0(%v57: i64):
        %251 = "tile.load"(%s8, %v57) : (!tile.scratch<f32, 8 : i64>, i64) -> f32
        %v58 = "tile.let"(%251) {id = 58 : i64} : (f32) -> f32
        %252 = "tile.const"() {value = 0.0 : f64} : () -> i64
        %253 = "tile.const"() {value = 16.0 : f64} : () -> i64
        "tile.for"(%252, %253) ({
        ^bb0(%v59: i64):
          %254 = "tile.const"() {value = 16.0 : f64} : () -> i64
          %255 = "tile.map"(%v57, %254) {fn = "mul"} : (i64, i64) -> i64
          %256 = "tile.map"(%255, %v59) {fn = "add"} : (i64, i64) -> i64
          %v60 = "tile.let"(%256) {id = 60 : i64} : (i64) -> i64
          %257 = "tile.load"(%s5, %v60) : (!tile.scratch<f32, 128 : i64>, i64) -> f32
          %258 = "tile.map"(%257, %v58) {fn = "mul"} : (f32, f32) -> f32
          "tile.store"(%s5, %v60, %258) : (!tile.scratch<f32, 128 : i64>, i64, f32) -> ()
          "vector.yield"() : () -> ()
        }) {id = 59 : i64, kind = "vector"} : (i64, i64) -> ()
        "vector.yield"() : () -> ()
      }) {id = 57 : i64, kind = "serial"} : (i64, i64) -> ()
      %259 = "tile.get"(%v30) : (!tile.place<i64>) -> i64
      %260 = "tile.map"(%v5, %v29) {fn = "mul"} : (i64, i64) -> i64
      %261 = "tile.map"(%259, %260) {fn = "eq"} : (i64, i64) -> i1
      %v61 = "tile.let"(%261) {id = 61 : i64} : (i1) -> i1
      "tile.if"(%v61) ({
        %262 = "tile.dim"() {index = 2 : i64} : () -> i64
        %263 = "tile.map"(%v3, %262) {fn = "mul"} : (i64, i64) -> i64
        %264 = "tile.map"(%263, %v28) {fn = "add"} : (i64, i64) -> i64
        %265 = "tile.const"() {value = 2.0 : f64} : () -> i64
        %266 = "tile.map"(%264, %265) {fn = "mul"} : (i64, i64) -> i64
        %267 = "tile.map"(%266, %v4) {fn = "add"} : (i64, i64) -> i64
        %268 = "tile.const"() {value = 16.0 : f64} : () -> i64
        %269 = "tile.map"(%267, %268) {fn = "mul"} : (i64, i64) -> i64
        %v62 = "tile.let"(%269) {id = 62 : i64} : (i64) -> i64
        %270 = "tile.const"() {value = 8.0 : f64} : () -> i64
        %271 = "tile.const"() {value = 16.0 : f64} : () -> i64
        %272 = "tile.const"() {value = 0.0 : f64} : () -> i64
        %273 = "tile.const"() {value = 1.0 : f64} : () -> i64
        %274 = "tile.const"() {value = 8.0 : f64} : () -> i64
        %275 = "tile.const"() {value = 32.0 : f64} : () -> i64
        %276 = "tile.const"() {value = 1.0 : f64} : () -> i64
        %277 = "tile.const"() {value = 0.0 : f64} : () -> i64
        %278 = "tile.const"() {value = 16.0 : f64} : () -> i64
        %279 = "tile.const"() {value = 1.0 : f64} : () -> i64
        "tile.dot"(%s4, %b2, %s5, %270, %271, %v29, %272, %273, %274, %v62, %275, %276, %277, %278, %279) {accumulate = true} : (!tile.scratch<f32, 64 : i64>, !tile.buffer<bf16, "32*B*S", "read", 2 : i64>, !tile.scratch<f32, 128 : i64>, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64) -> ()
        "vector.yield"() : () -> ()
      }, {
        "vector.yield"() : () -> ()
      }) : (i1) -> ()
      %280 = "tile.map"(%v61) {fn = "not"} : (i1) -> i1
      "tile.if"(%280) ({
        %281 = "tile.const"() {value = 0.0 : f64} : () -> i64
        %v63 = "tile.var"(%281) {id = 63 : i64} : (i64) -> !tile.place<i64>
        %282 = "tile.const"() {value = 0.0 : f64} : () -> i64
        "tile.for"(%282, %v29) ({
        ^bb0(%v64: i64):
          %283 = "tile.dim"() {index = 2 : i64} : () -> i64
          %284 = "tile.map"(%v3, %283) {fn = "mul"} : (i64, i64) -> i64
          %285 = "tile.map"(%v28, %v64) {fn = "add"} : (i64, i64) -> i64
          %286 = "tile.map"(%284, %285) {fn = "add"} : (i64, i64) -> i64
          %287 = "tile.const"() {value = 2.0 : f64} : () -> i64
          %288 = "tile.map"(%286, %287) {fn = "mul"} : (i64, i64) -> i64
          %289 = "tile.map"(%288, %v4) {fn = "add"} : (i64, i64) -> i64
          %290 = "tile.const"() {value = 16.0 : f64} : () -> i64
          %291 = "tile.map"(%289, %290) {fn = "mul"} : (i64, i64) -> i64
          %v65 = "tile.let"(%291) {id = 65 : i64} : (i64) -> i64
          %292 = "tile.const"() {value = 0.0 : f64} : () -> f32
          %v66 = "tile.var"(%292) {id = 66 : i64} : (f32) -> !tile.place<f32>
          %293 = "tile.const"() {value = 0.0 : f64} : () -> i64
          %294 = "tile.const"() {value = 16.0 : f64} : () -> i64
          "tile.for"(%293, %294) ({
          ^bb0(%v67: i64):
            %295 = "tile.map"(%v65, %v67) {fn = "add"} : (i64, i64) -> i64
            %296 = "tile.load"(%b2, %295) : (!tile.buffer<bf16, "32*B*S", "read", 2 : i64>, i64) -> f32
            %297 = "tile.map"(%296) {fn = "abs"} : (f32) -> f32
            "tile.accumulate"(%v66, %297) {fn = "sum"} : (!tile.place<f32>, f32) -> ()
            "vector.yield"() : () -> ()
          }) {id = 67 : i64, kind = "vector"} : (i64, i64) -> ()
          %298 = "tile.get"(%v66) : (!tile.place<f32>) -> f32
          %299 = "tile.map"(%298) {fn = "is_finite"} : (f32) -> i1
          %v68 = "tile.let"(%299) {id = 68 : i64} : (i1) -> i1
          %300 = "tile.map"(%v68) {fn = "not"} : (i1) -> i1
          %v69 = "tile.let"(%300) {id = 69 : i64} : (i1) -> i1
          "tile.store"(%s2, %v64, %v69) : (!tile.scratch<i1, 8 : i64>, i64, i1) -> ()
          %301 = "tile.get"(%v63) : (!tile.place<i64>) -> i64
          %302 = "tile.cast"(%v69) {to = i64} : (i1) -> i64
          %303 = "tile.map"(%301, %302) {fn = "add"} : (i64, i64) -> i64
          "tile.assign"(%v63, %303) : (!tile.place<i64>, i64) -> ()
          %304 = "tile.const"() {value = 0.0 : f64} : () -> i64
          %305 = "tile.const"() {value = 16.0 : f64} : () -> i64
          "tile.for"(%304, %305) ({
          ^bb0(%v70: i64):
            %306 = "tile.const"() {value = 16.0 : f64} : () -> i64
            %307 = "tile.map"(%v64, %306) {fn = "mul"} : (i64, i64) -> i64
            %308 = "tile.map"(%307, %v70) {fn = "add"} : (i64, i64) -> i64
            %309 = "tile.map"(%v65, %v70) {fn = "add"} : (i64, i64) -> i64
            %310 = "tile.load"(%b2, %309) : (!tile.buffer<bf16, "32*B*S", "read", 2 : i64>, i64) -> f32
            %311 = "tile.const"() {value = 0.0 : f64} : () -> f32
            %312 = "tile.select"(%v68, %310, %311) : (i1, f32, f32) -> f32
            "tile.store"(%s1, %308, %312) : (!tile.scratch<f32, 128 : i64>, i64, f32) -> ()
            "vector.yield"() : () -> ()
          }) {id = 70 : i64, kind = "vector"} : (i64, i64) -> ()
          "vector.yield"() : () -> ()
        }) {id = 64 : i64, kind = "serial"} : (i64, i64) -> ()
        %313 = "tile.const"() {value = 8.0 : f64} : () -> i64
        %314 = "tile.const"() {value = 16.0 : f64} : () -> i64
        %315 = "tile.const"() {value = 0.0 : f64} : () -> i64
        %316 = "tile.const"() {value = 1.0 : f64} : () -> i64
        %317 = "tile.const"() {value = 8.0 : f64} : () -> i64
        %318 = "tile.const"() {value = 0.0 : f64} : () -> i64
        %319 = "tile.const"() {value = 16.0 : f64} : () -> i64
        %320 = "tile.const"() {value = 1.0 : f64} : () -> i64
        %321 = "tile.const"() {value = 0.0 : f64} : () -> i64
        %322 = "tile.const"() {value = 16.0 : f64} : () -> i64
        %323 = "tile.const"() {value = 1.0 : f64} : () -> i64
        "tile.dot"(%s4, %s1, %s5, %313, %314, %v29, %315, %316, %317, %318, %319, %320, %321, %322, %323) {accumulate = true} : (!tile.scratch<f32, 64 : i64>, !tile.scratch<f32, 128 : i64>, !tile.scratch<f32, 128 : i64>, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64) -> ()
        %324 = "tile.const"() {value = 0.0 : f64} : () -> i64
        %325 = "tile.get"(%v63) : (!tile.place<i64>) -> i64
        %326 = "tile.map"(%324, %325) {fn = "lt"} : (i64, i64) -> i1
        "tile.if"(%326) ({
          %327 = "tile.const"() {value = 0.0 : f64} : () -> i64
          "tile.for"(%327, %v29) ({
          ^bb0(%v71: i64):
            %328 = "tile.load"(%s2, %v71) : (!tile.scratch<i1, 8 : i64>, i64) -> i1
            "tile.if"(%328) ({
              %329 = "tile.dim"() {index = 2 : i64} : () -> i64
              %330 = "tile.map"(%v3, %329) {fn = "mul"} : (i64, i64) -> i64
              %331 = "tile.map"(%v28, %v71) {fn = "add"} : (i64, i64) -> i64
              %332 = "tile.map"(%330, %331) {fn = "add"} : (i64, i64) -> i64
              %333 = "tile.const"() {value = 2.0 : f64} : () -> i64
              %334 = "tile.map"(%332, %333) {fn = "mul"} : (i64, i64) -> i64
              %335 = "tile.map"(%334, %v4) {fn = "add"} : (i64, i64) -> i64
              %336 = "tile.const"() {value = 16.0 : f64} : () -> i64
              %337 = "tile.map"(%335, %336) {fn = "mul"} : (i64, i64) -> i64
              %v72 = "tile.let"(%337) {id = 72 : i64} : (i64) -> i64
              %338 = "tile.const"() {value = 0.0 : f64} : () -> i64
              %339 = "tile.const"() {value = 2.0 : f64} : () -> i64
              "tile.for"(%338, %339) ({
              ^bb0(%v73: i64):
                %340 = "tile.const"() {value = 0.0 : f64} : () -> i64
                "tile.for"(%340, %v5) ({
                ^bb0(%v74: i64):
                  %341 = "tile.const"() {value = 4.0 : f64} : () -> i64
                  %342 = "tile.map"(%v73, %341) {fn = "mul"} : (i64, i64) -> i64
                  %343 = "tile.map"(%342, %v74) {fn = "add"} : (i64, i64) -> i64
                  %v75 = "tile.let"(%343) {id = 75 : i64} : (i64) -> i64
                  %344 = "tile.dim"() {index = 1 : i64} : () -> i64
                  %345 = "tile.map"(%v3, %344) {fn = "mul"} : (i64, i64) -> i64
                  %346 = "tile.map"(%v2, %v74) {fn = "add"} : (i64, i64) -> i64
                  %347 = "tile.map"(%345, %346) {fn = "add"} : (i64, i64) -> i64
                  %348 = "tile.const"() {value = 4.0 : f64} : () -> i64
                  %349 = "tile.map"(%347, %348) {fn = "mul"} : (i64, i64) -> i64
                  %350 = "tile.const"() {value = 2.0 : f64} : () -> i64
                  %351 = "tile.map"(%v4, %350) {fn = "mul"} : (i64, i64) -> i64
                  %352 = "tile.map"(%349, %351) {fn = "add"} : (i64, i64) -> i64
                  %353 = "tile.map"(%352, %v73) {fn = "add"} : (i64, i64) -> i64
                  %v76 = "tile.let"(%353) {id = 76 : i64} : (i64) -> i64
                  %354 = "tile.const"() {value = 4.0 : f64} : () -> i64
                  %355 = "tile.map"(%v71, %354) {fn = "mul"} : (i64, i64) -> i64
                  %356 = "tile.const"() {value = 4.0 : f64} : () -> i64
                  %357 = "tile.map"(%v75, %356) {fn = "rem"} : (i64, i64) -> i64
                  %358 = "tile.map"(%355, %357) {fn = "add"} : (i64, i64) -> i64
                  %359 = "tile.load"(%s0, %358) : (!tile.scratch<i1, 32 : i64>, i64) -> i1
                  "tile.if"(%359) ({
                    %360 = "tile.const"() {value = 8.0 : f64} : () -> i64
                    %361 = "tile.map"(%v71, %360) {fn = "mul"} : (i64, i64) -> i64
                    %362 = "tile.map"(%361, %v75) {fn = "add"} : (i64, i64) -> i64
                    %363 = "tile.load"(%s4, %362) : (!tile.scratch<f32, 64 : i64>, i64) -> f32
                    %v77 = "tile.let"(%363) {id = 77 : i64} : (f32) -> f32
                    %364 = "tile.const"() {value = 0.0 : f64} : () -> i64
                    %365 = "tile.const"() {value = 16.0 : f64} : () -> i64
                    "tile.for"(%364, %365) ({
                    ^bb0(%v78: i64):
                      %366 = "tile.const"() {value = 16.0 : f64} : () -> i64
                      %367 = "tile.map"(%v75, %366) {fn = "mul"} : (i64, i64) -> i64
                      %368 = "tile.map"(%367, %v78) {fn = "add"} : (i64, i64) -> i64
                      %v79 = "tile.let"(%368) {id = 79 : i64} : (i64) -> i64
                      %369 = "tile.load"(%s5, %v79) : (!tile.scratch<f32, 128 : i64>, i64) -> f32
                      %370 = "tile.map"(%v72, %v78) {fn = "add"} : (i64, i64) -> i64
                      %371 = "tile.load"(%b2, %370) : (!tile.buffer<bf16, "32*B*S", "read", 2 : i64>, i64) -> f32
                      %372 = "tile.map"(%v77, %371) {fn = "mul"} : (f32, f32) -> f32
                      %373 = "tile.map"(%369, %372) {fn = "add"} : (f32, f32) -> f32
                      "tile.store"(%s5, %v79, %373) : (!tile.scratch<f32, 128 : i64>, i64, f32) -> ()
                      "vector.yield"() : () -> ()
                    }) {id = 78 : i64, kind = "vector"} : (i64, i64) -> ()
                    "vector.yield"() : () -> ()
                  }, {
                    "vector.yield"() : () -> ()
                  }) : (i1) -> ()
                  "vector.yield"() : () -> ()
                }) {id = 74 : i64, kind = "serial"} : (i64, i64) -> ()
                "vector.yield"() : () -> ()
              }) {id = 73 : i64, kind = "serial"} : (i64, i64) -> ()
              "vector.yield"() : () -> ()
            }, {
              "vector.yield"() : () -> ()
            }) : (i1) -> ()
            "vector.yield"() : () -> ()
          }) {id = 71 : i64, kind = "serial"} : (i64, i64) -> ()
          "vector.yield"() : () -> ()
        }, {
          "vector.yield"() : () -> ()
        }) : (i1) -> ()
        "vector.yield"() : () -> ()
      }, {
        "vector.yield"() : () -> ()
      }) : (i1) -> ()
      "vector.yield"() : () -> ()
    }, {
      "vector.yield"() : () -> ()
    }) : (i1) -> ()
    "vector.yield"() : () -> ()
  }) {id = 27 : i64, kind = "serial"} : (i64, i64) -> ()
  %374 = "tile.const"() {value = 0.0 : f64} : () -> i64
  %375 = "tile.const"() {value = 2.0 : f64} : () -> i64
  "tile.for"(%374, %375) ({
  ^bb0(%v80: i64):
    %376 = "tile.const"() {value = 0.0 : f64} : () -> i64
    "tile.for"(%376, %v5) ({
    ^bb0(%v81: i64):
      %377 = "tile.const"() {value = 4.0 : f64} : () -> i64
      %378 = "tile.map"(%v80, %377) {fn = "mul"} : (i64, i64) -> i64
      %379 = "tile.map"(%378, %v81) {fn = "add"} : (i64, i64) -> i64
      %v82 = "tile.let"(%379) {id = 82 : i64} : (i64) -> i64
      %380 = "tile.dim"() {index = 1 : i64} : () -> i64
      %381 = "tile.map"(%v3, %380) {fn = "mul"} : (i64, i64) -> i64
      %382 = "tile.map"(%v2, %v81) {fn = "add"} : (i64, i64) -> i64
      %383 = "tile.map"(%381, %382) {fn = "add"} : (i64, i64) -> i64
      %384 = "tile.const"() {value = 4.0 : f64} : () -> i64
      %385 = "tile.map"(%383, %384) {fn = "mul"} : (i64, i64) -> i64
      %386 = "tile.const"() {value = 2.0 : f64} : () -> i64
      %387 = "tile.map"(%v4, %386) {fn = "mul"} : (i64, i64) -> i64
      %388 = "tile.map"(%385, %387) {fn = "add"} : (i64, i64) -> i64
      %389 = "tile.map"(%388, %v80) {fn = "add"} : (i64, i64) -> i64
      %v83 = "tile.let"(%389) {id = 83 : i64} : (i64) -> i64
      %390 = "tile.load"(%s9, %v82) : (!tile.scratch<f32, 8 : i64>, i64) -> f32
      %v84 = "tile.let"(%390) {id = 84 : i64} : (f32) -> f32
      %391 = "tile.const"() {value = 0.0 : f64} : () -> f32
      %392 = "tile.map"(%v84, %391) {fn = "eq"} : (f32, f32) -> i1
      %v85 = "tile.let"(%392) {id = 85 : i64} : (i1) -> i1
      %393 = "tile.const"() {value = 0.0 : f64} : () -> f32
      %394 = "tile.load"(%s6, %v82) : (!tile.scratch<f32, 8 : i64>, i64) -> f32
      %395 = "tile.map"(%v84) {fn = "log"} : (f32) -> f32
      %396 = "tile.map"(%394, %395) {fn = "add"} : (f32, f32) -> f32
      %397 = "tile.select"(%v85, %393, %396) : (i1, f32, f32) -> f32
      "tile.store"(%b5, %v83, %397) : (!tile.buffer<f32, "4*B*T", "write", 4 : i64>, i64, f32) -> ()
      %398 = "tile.const"() {value = 0.0 : f64} : () -> f32
      %399 = "tile.const"() {value = 1.0 : f64} : () -> f32
      %400 = "tile.map"(%399, %v84) {fn = "div"} : (f32, f32) -> f32
      %401 = "tile.select"(%v85, %398, %400) : (i1, f32, f32) -> f32
      %v86 = "tile.let"(%401) {id = 86 : i64} : (f32) -> f32
      %402 = "tile.const"() {value = 0.0 : f64} : () -> i64
      %403 = "tile.const"() {value = 16.0 : f64} : () -> i64
      "tile.for"(%402, %403) ({
      ^bb0(%v87: i64):
        %404 = "tile.const"() {value = 16.0 : f64} : () -> i64
        %405 = "tile.map"(%v83, %404) {fn = "mul"} : (i64, i64) -> i64
        %406 = "tile.map"(%405, %v87) {fn = "add"} : (i64, i64) -> i64
        %407 = "tile.const"() {value = 16.0 : f64} : () -> i64
        %408 = "tile.map"(%v82, %407) {fn = "mul"} : (i64, i64) -> i64
        %409 = "tile.map"(%408, %v87) {fn = "add"} : (i64, i64) -> i64
        %410 = "tile.load"(%s5, %409) : (!tile.scratch<f32, 128 : i64>, i64) -> f32
        %411 = "tile.map"(%410, %v86) {fn = "mul"} : (f32, f32) -> f32
        "tile.store"(%b4, %406, %411) : (!tile.buffer<bf16, "64*B*T", "write", 2 : i64>, i64, f32) -> ()
        "vector.yield"() : () -> ()
      }) {id = 87 : i64, kind = "vector"} : (i64, i64) -> ()
      "vector.yield"() : () -> ()
    }) {id = 81 : i64, kind = "serial"} : (i64, i64) -> ()
    "vector.yield"() : () -> ()
  }) {id = 80 : i64, kind = "serial"} : (i64, i64) -> ()
  "vector.yield"() : () -> ()
}) {sym_name = "attend", grid = "2*B*floordiv(T + 3, 4)", dims = ["floordiv(T + 3, 4)", "T", "S"], buffers = ["q", "k", "v", "d0", "o", "lse"], scratch = ["mask", "values", "bad", "qt", "scores", "out", "max", "new_max", "alpha", "sum"], vars = [i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i1, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i1, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, f32, f32, f32, i64, i64, i64, f32, i64, f32, i64, i64, i1, i64, i64, i64, i64, f32, i64, i1, i1, i64, i64, i64, i64, i64, i64, i64, f32, i64, i64, i64, i64, i64, i64, f32, i1, f32, i64]} : () -> ()
