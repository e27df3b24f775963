"tile.kernel"() ({
^bb0(%v0: i64, %b0: !tile.buffer<f64, "2*T", "read">, %b1: !tile.buffer<f32, "2*T", "read">, %b2: !tile.buffer<bf16, "2*T", "read">, %b3: !tile.buffer<f16, "2*T", "read">, %b4: !tile.buffer<f8E4M3FN, "2*T", "read">, %b5: !tile.buffer<i64, "2*T", "read">, %b6: !tile.buffer<i32, "2*T", "read">, %b7: !tile.buffer<i1, "2*T", "read">, %b8: !tile.buffer<bf16, "T", "write">, %b9: !tile.buffer<f32, "64", "read_write">, %b10: !tile.buffer<i32, "4", "read">, %s0: !tile.scratch<f32, 64 : i64>):
  %0 = "tile.load"(%b0, %v0) : (!tile.buffer<f64, "2*T", "read">, i64) -> f64
  %v1 = "tile.let"(%0) {id = 1 : i64} : (f64) -> f64
  %1 = "tile.load"(%b1, %v0) : (!tile.buffer<f32, "2*T", "read">, i64) -> f32
  %v2 = "tile.let"(%1) {id = 2 : i64} : (f32) -> f32
  %2 = "tile.load"(%b2, %v0) : (!tile.buffer<bf16, "2*T", "read">, i64) -> f32
  %v3 = "tile.let"(%2) {id = 3 : i64} : (f32) -> f32
  %3 = "tile.load"(%b3, %v0) : (!tile.buffer<f16, "2*T", "read">, i64) -> f32
  %v4 = "tile.let"(%3) {id = 4 : i64} : (f32) -> f32
  %4 = "tile.load"(%b4, %v0) : (!tile.buffer<f8E4M3FN, "2*T", "read">, i64) -> f32
  %v5 = "tile.let"(%4) {id = 5 : i64} : (f32) -> f32
  %5 = "tile.load"(%b5, %v0) : (!tile.buffer<i64, "2*T", "read">, i64) -> i64
  %v6 = "tile.let"(%5) {id = 6 : i64} : (i64) -> i64
  %6 = "tile.load"(%b6, %v0) : (!tile.buffer<i32, "2*T", "read">, i64) -> i32
  %v7 = "tile.let"(%6) {id = 7 : i64} : (i32) -> i32
  %7 = "tile.load"(%b7, %v0) : (!tile.buffer<i1, "2*T", "read">, i64) -> i1
  %v8 = "tile.let"(%7) {id = 8 : i64} : (i1) -> i1
  %8 = "tile.dim"() {index = 0 : i64} : () -> i64
  %9 = "tile.map"(%v0, %8) {fn = "add"} : (i64, i64) -> i64
  %10 = "tile.load"(%b2, %9) : (!tile.buffer<bf16, "2*T", "read">, i64) -> f32
  %v9 = "tile.let"(%10) {id = 9 : i64} : (f32) -> f32
  %11 = "tile.const"() {value = 0x7FF8000000000000 : f64} : () -> f64
  %12 = "tile.cast"(%11) {to = f32} : (f64) -> f32
  %v11 = "tile.let"(%12) {id = 11 : i64} : (f32) -> f32
  %13 = "tile.const"() {value = 0xFFF0000000000000 : f64} : () -> f64
  %14 = "tile.cast"(%13) {to = f32} : (f64) -> f32
  %v13 = "tile.let"(%14) {id = 13 : i64} : (f32) -> f32
  %15 = "tile.const"() {value = -0.0 : f64} : () -> f64
  %16 = "tile.cast"(%15) {to = f32} : (f64) -> f32
  %v15 = "tile.let"(%16) {id = 15 : i64} : (f32) -> f32
  %17 = "tile.const"() {value = 1.0e-310 : f64} : () -> f64
  %18 = "tile.cast"(%17) {to = f32} : (f64) -> f32
  %v17 = "tile.let"(%18) {id = 17 : i64} : (f32) -> f32
  %19 = "tile.map"(%v9, %v9) {fn = "add"} : (f32, f32) -> f32
  %v18 = "tile.let"(%19) {id = 18 : i64} : (f32) -> f32
  %20 = "tile.map"(%v9, %v9) {fn = "sub"} : (f32, f32) -> f32
  %v19 = "tile.let"(%20) {id = 19 : i64} : (f32) -> f32
  %21 = "tile.map"(%v9, %v9) {fn = "mul"} : (f32, f32) -> f32
  %v20 = "tile.let"(%21) {id = 20 : i64} : (f32) -> f32
  %22 = "tile.map"(%v9, %v9) {fn = "div"} : (f32, f32) -> f32
  %v21 = "tile.let"(%22) {id = 21 : i64} : (f32) -> f32
  %23 = "tile.map"(%v0, %v0) {fn = "floor_div"} : (i64, i64) -> i64
  %v22 = "tile.let"(%23) {id = 22 : i64} : (i64) -> i64
  %24 = "tile.map"(%v0, %v0) {fn = "rem"} : (i64, i64) -> i64
  %v23 = "tile.let"(%24) {id = 23 : i64} : (i64) -> i64
  %25 = "tile.map"(%v9, %v9) {fn = "min"} : (f32, f32) -> f32
  %v24 = "tile.let"(%25) {id = 24 : i64} : (f32) -> f32
  %26 = "tile.map"(%v9, %v9) {fn = "max"} : (f32, f32) -> f32
  %v25 = "tile.let"(%26) {id = 25 : i64} : (f32) -> f32
  %27 = "tile.map"(%v9, %v9) {fn = "pow"} : (f32, f32) -> f32
  %v26 = "tile.let"(%27) {id = 26 : i64} : (f32) -> f32
  %28 = "tile.map"(%v9) {fn = "neg"} : (f32) -> f32
  %v27 = "tile.let"(%28) {id = 27 : i64} : (f32) -> f32
  %29 = "tile.map"(%v9) {fn = "abs"} : (f32) -> f32
  %v28 = "tile.let"(%29) {id = 28 : i64} : (f32) -> f32
  %30 = "tile.map"(%v9) {fn = "sign"} : (f32) -> f32
  %v29 = "tile.let"(%30) {id = 29 : i64} : (f32) -> f32
  %31 = "tile.map"(%v9) {fn = "floor"} : (f32) -> f32
  %v30 = "tile.let"(%31) {id = 30 : i64} : (f32) -> f32
  %32 = "tile.map"(%v9) {fn = "exp"} : (f32) -> f32
  %v31 = "tile.let"(%32) {id = 31 : i64} : (f32) -> f32
  %33 = "tile.map"(%v9) {fn = "log"} : (f32) -> f32
  %v32 = "tile.let"(%33) {id = 32 : i64} : (f32) -> f32
  %34 = "tile.map"(%v9) {fn = "sqrt"} : (f32) -> f32
  %v33 = "tile.let"(%34) {id = 33 : i64} : (f32) -> f32
  %35 = "tile.map"(%v9) {fn = "rsqrt"} : (f32) -> f32
  %v34 = "tile.let"(%35) {id = 34 : i64} : (f32) -> f32
  %36 = "tile.map"(%v9) {fn = "sin"} : (f32) -> f32
  %v35 = "tile.let"(%36) {id = 35 : i64} : (f32) -> f32
  %37 = "tile.map"(%v9) {fn = "cos"} : (f32) -> f32
  %v36 = "tile.let"(%37) {id = 36 : i64} : (f32) -> f32
  %38 = "tile.map"(%v9) {fn = "tanh"} : (f32) -> f32
  %v37 = "tile.let"(%38) {id = 37 : i64} : (f32) -> f32
  %39 = "tile.map"(%v9) {fn = "sigmoid"} : (f32) -> f32
  %v38 = "tile.let"(%39) {id = 38 : i64} : (f32) -> f32
  %40 = "tile.map"(%v9) {fn = "silu"} : (f32) -> f32
  %v39 = "tile.let"(%40) {id = 39 : i64} : (f32) -> f32
  %41 = "tile.map"(%v9, %v9) {fn = "swiglu"} : (f32, f32) -> f32
  %v40 = "tile.let"(%41) {id = 40 : i64} : (f32) -> f32
  %42 = "tile.map"(%v9) {fn = "softplus"} : (f32) -> f32
  %v41 = "tile.let"(%42) {id = 41 : i64} : (f32) -> f32
  %43 = "tile.map"(%v9) {fn = "erf"} : (f32) -> f32
  %v42 = "tile.let"(%43) {id = 42 : i64} : (f32) -> f32
  %44 = "tile.map"(%v9, %v9) {fn = "eq"} : (f32, f32) -> i1
  %v43 = "tile.let"(%44) {id = 43 : i64} : (i1) -> i1
  %45 = "tile.map"(%v9, %v9) {fn = "ne"} : (f32, f32) -> i1
  %v44 = "tile.let"(%45) {id = 44 : i64} : (i1) -> i1
  %46 = "tile.map"(%v9, %v9) {fn = "lt"} : (f32, f32) -> i1
  %v45 = "tile.let"(%46) {id = 45 : i64} : (i1) -> i1
  %47 = "tile.map"(%v9, %v9) {fn = "le"} : (f32, f32) -> i1
  %v46 = "tile.let"(%47) {id = 46 : i64} : (i1) -> i1
  %48 = "tile.cast"(%v9) {to = i1} : (f32) -> i1
  %49 = "tile.cast"(%v9) {to = i1} : (f32) -> i1
  %50 = "tile.map"(%48, %49) {fn = "and"} : (i1, i1) -> i1
  %v47 = "tile.let"(%50) {id = 47 : i64} : (i1) -> i1
  %51 = "tile.cast"(%v9) {to = i1} : (f32) -> i1
  %52 = "tile.cast"(%v9) {to = i1} : (f32) -> i1
  %53 = "tile.map"(%51, %52) {fn = "or"} : (i1, i1) -> i1
  %v48 = "tile.let"(%53) {id = 48 : i64} : (i1) -> i1
  %54 = "tile.cast"(%v9) {to = i1} : (f32) -> i1
  %55 = "tile.map"(%54) {fn = "not"} : (i1) -> i1
  %v49 = "tile.let"(%55) {id = 49 : i64} : (i1) -> i1
  %56 = "tile.map"(%v9) {fn = "is_finite"} : (f32) -> i1
  %v50 = "tile.let"(%56) {id = 50 : i64} : (i1) -> i1
  %57 = "tile.map"(%v9, %v9) {fn = "lt"} : (f32, f32) -> i1
  %58 = "tile.select"(%57, %v9, %v9) : (i1, f32, f32) -> f32
  %v51 = "tile.let"(%58) {id = 51 : i64} : (f32) -> f32
  %59 = "tile.cast"(%v9) {to = f64} : (f32) -> f64
  %v52 = "tile.let"(%59) {id = 52 : i64} : (f64) -> f64
  %60 = "tile.cast"(%v9) {to = f32} : (f32) -> f32
  %v53 = "tile.let"(%60) {id = 53 : i64} : (f32) -> f32
  %61 = "tile.cast"(%v9) {to = bf16} : (f32) -> f32
  %v54 = "tile.let"(%61) {id = 54 : i64} : (f32) -> f32
  %62 = "tile.cast"(%v9) {to = f16} : (f32) -> f32
  %v55 = "tile.let"(%62) {id = 55 : i64} : (f32) -> f32
  %63 = "tile.cast"(%v9) {to = f8E4M3FN} : (f32) -> f32
  %v56 = "tile.let"(%63) {id = 56 : i64} : (f32) -> f32
  %64 = "tile.cast"(%v9) {to = i64} : (f32) -> i64
  %v57 = "tile.let"(%64) {id = 57 : i64} : (i64) -> i64
  %65 = "tile.cast"(%v9) {to = i32} : (f32) -> i32
  %v58 = "tile.let"(%65) {id = 58 : i64} : (i32) -> i32
  %66 = "tile.cast"(%v9) {to = i1} : (f32) -> i1
  %v59 = "tile.let"(%66) {id = 59 : i64} : (i1) -> i1
  %67 = "tile.const"() {value = 1.0 : f64} : () -> f32
  %68 = "tile.order"(%67) : (f32) -> i32
  %v60 = "tile.let"(%68) {id = 60 : i64} : (i32) -> i32
  %v61 = "tile.var"(%v9) {id = 61 : i64} : (f32) -> !tile.place<f32>
  %69 = "tile.const"() {value = 0.0 : f64} : () -> i64
  %70 = "tile.dim"() {index = 0 : i64} : () -> i64
  "tile.for"(%69, %70) ({
  ^bb0(%v62: i64):
    %71 = "tile.load"(%b9, %v62) : (!tile.buffer<f32, "64", "read_write">, i64) -> f32
    "tile.accumulate"(%v61, %71) {fn = "sum"} : (!tile.place<f32>, f32) -> ()
    "vector.yield"() : () -> ()
  }) {id = 62 : i64, kind = "vector"} : (i64, i64) -> ()
  %72 = "tile.const"() {value = 0.0 : f64} : () -> i64
  %73 = "tile.dim"() {index = 0 : i64} : () -> i64
  "tile.for"(%72, %73) ({
  ^bb0(%v63: i64):
    %74 = "tile.load"(%b9, %v63) : (!tile.buffer<f32, "64", "read_write">, i64) -> f32
    "tile.accumulate"(%v61, %74) {fn = "prod"} : (!tile.place<f32>, f32) -> ()
    "vector.yield"() : () -> ()
  }) {id = 63 : i64, kind = "vector"} : (i64, i64) -> ()
  %75 = "tile.const"() {value = 0.0 : f64} : () -> i64
  %76 = "tile.dim"() {index = 0 : i64} : () -> i64
  "tile.for"(%75, %76) ({
  ^bb0(%v64: i64):
    %77 = "tile.load"(%b9, %v64) : (!tile.buffer<f32, "64", "read_write">, i64) -> f32
    "tile.accumulate"(%v61, %77) {fn = "max"} : (!tile.place<f32>, f32) -> ()
    "vector.yield"() : () -> ()
  }) {id = 64 : i64, kind = "vector"} : (i64, i64) -> ()
  %78 = "tile.const"() {value = 0.0 : f64} : () -> i64
  %79 = "tile.dim"() {index = 0 : i64} : () -> i64
  "tile.for"(%78, %79) ({
  ^bb0(%v65: i64):
    %80 = "tile.load"(%b9, %v65) : (!tile.buffer<f32, "64", "read_write">, i64) -> f32
    "tile.accumulate"(%v61, %80) {fn = "min"} : (!tile.place<f32>, f32) -> ()
    "vector.yield"() : () -> ()
  }) {id = 65 : i64, kind = "vector"} : (i64, i64) -> ()
  %81 = "tile.const"() {value = 0.0 : f64} : () -> i64
  %82 = "tile.dim"() {index = 0 : i64} : () -> i64
  "tile.for"(%81, %82) ({
  ^bb0(%v66: i64):
    %83 = "tile.dim"() {index = 0 : i64} : () -> i64
    %84 = "tile.map"(%v66, %83) {fn = "lt"} : (i64, i64) -> i1
    "tile.if"(%84) ({
      %85 = "tile.get"(%v61) : (!tile.place<f32>) -> f32
      "tile.store"(%b8, %v66, %85) : (!tile.buffer<bf16, "T", "write">, i64, f32) -> ()
      "vector.yield"() : () -> ()
    }, {
      "vector.yield"() : () -> ()
    }) : (i1) -> ()
    "vector.yield"() : () -> ()
  }) {id = 66 : i64, kind = "serial"} : (i64, i64) -> ()
  %86 = "tile.const"() {value = 0.0 : f64} : () -> i64
  %87 = "tile.dim"() {index = 0 : i64} : () -> i64
  "tile.for"(%86, %87) ({
  ^bb0(%v67: i64):
    "tile.store"(%b8, %v67, %v9) : (!tile.buffer<bf16, "T", "write">, i64, f32) -> ()
    "vector.yield"() : () -> ()
  }) {id = 67 : i64, kind = "parallel"} : (i64, i64) -> ()
  %88 = "tile.const"() {value = 0.0 : f64} : () -> i1
  "tile.if"(%88) ({
    "vector.yield"() : () -> ()
  }, {
    "vector.yield"() : () -> ()
  }) : (i1) -> ()
  "tile.while"() ({
    %89 = "tile.get"(%v61) : (!tile.place<f32>) -> f32
    %90 = "tile.map"(%89, %v9) {fn = "lt"} : (f32, f32) -> i1
    "vector.yield"(%90) : (i1) -> ()
  }, {
    %91 = "tile.get"(%v61) : (!tile.place<f32>) -> f32
    %92 = "tile.map"(%91, %v9) {fn = "add"} : (f32, f32) -> f32
    "tile.assign"(%v61, %92) : (!tile.place<f32>, f32) -> ()
    "vector.yield"() : () -> ()
  }) : () -> ()
  %93 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %94 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %95 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %96 = "tile.const"() {value = 0.0 : f64} : () -> i64
  %97 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %98 = "tile.const"() {value = 1.0 : f64} : () -> i64
  %99 = "tile.const"() {value = 0.0 : f64} : () -> i64
  %100 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %101 = "tile.const"() {value = 1.0 : f64} : () -> i64
  %102 = "tile.const"() {value = 0.0 : f64} : () -> i64
  %103 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %104 = "tile.const"() {value = 1.0 : f64} : () -> i64
  "tile.dot"(%b1, %s0, %b9, %93, %94, %95, %96, %97, %98, %99, %100, %101, %102, %103, %104) {accumulate = true} : (!tile.buffer<f32, "2*T", "read">, !tile.scratch<f32, 64 : i64>, !tile.buffer<f32, "64", "read_write">, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64) -> ()
  %105 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %106 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %107 = "tile.dim"() {index = 0 : i64} : () -> i64
  %108 = "tile.const"() {value = 0.0 : f64} : () -> i64
  %109 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %110 = "tile.const"() {value = 1.0 : f64} : () -> i64
  %111 = "tile.const"() {value = 0.0 : f64} : () -> i64
  %112 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %113 = "tile.const"() {value = 1.0 : f64} : () -> i64
  %114 = "tile.const"() {value = 0.0 : f64} : () -> i64
  %115 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %116 = "tile.const"() {value = 1.0 : f64} : () -> i64
  "tile.dot"(%b1, %b9, %s0, %105, %106, %107, %108, %109, %110, %111, %112, %113, %114, %115, %116) {accumulate = false} : (!tile.buffer<f32, "2*T", "read">, !tile.buffer<f32, "64", "read_write">, !tile.scratch<f32, 64 : i64>, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64) -> ()
  %117 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %118 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %119 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %120 = "tile.const"() {value = 0.0 : f64} : () -> i64
  %121 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %122 = "tile.const"() {value = 1.0 : f64} : () -> i64
  %123 = "tile.const"() {value = 0.0 : f64} : () -> i64
  %124 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %125 = "tile.const"() {value = 1.0 : f64} : () -> i64
  %126 = "tile.const"() {value = 0.0 : f64} : () -> i64
  %127 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %128 = "tile.const"() {value = 1.0 : f64} : () -> i64
  %129 = "tile.dim"() {index = 0 : i64} : () -> i64
  "tile.dot_rows"(%b1, %s0, %b9, %117, %118, %119, %120, %121, %122, %123, %124, %125, %126, %127, %128, %129) {accumulate = true} : (!tile.buffer<f32, "2*T", "read">, !tile.scratch<f32, 64 : i64>, !tile.buffer<f32, "64", "read_write">, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64) -> ()
  %130 = "tile.dim"() {index = 0 : i64} : () -> i64
  %131 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %132 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %133 = "tile.const"() {value = 1.0 : f64} : () -> i64
  %134 = "tile.const"() {value = 0.0 : f64} : () -> i64
  "tile.copy"(%b9, %s0, %130, %131, %v0, %132, %133, %134) {rows = 4 : i64, cols = 16 : i64} : (!tile.buffer<f32, "64", "read_write">, !tile.scratch<f32, 64 : i64>, i64, i64, i64, i64, i64, i64) -> ()
  %135 = "tile.dim"() {index = 0 : i64} : () -> i64
  %136 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %137 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %138 = "tile.const"() {value = 1.0 : f64} : () -> i64
  %139 = "tile.const"() {value = 0.0 : f64} : () -> i64
  "tile.copy_rows"(%b9, %s0, %b10, %135, %136, %v0, %137, %138, %139) {rows = 4 : i64, cols = 16 : i64} : (!tile.buffer<f32, "64", "read_write">, !tile.scratch<f32, 64 : i64>, !tile.buffer<i32, "4", "read">, i64, i64, i64, i64, i64, i64) -> ()
  %140 = "tile.dim"() {index = 0 : i64} : () -> i64
  %141 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %142 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %143 = "tile.const"() {value = 1.0 : f64} : () -> i64
  %144 = "tile.const"() {value = 0.0 : f64} : () -> i64
  "tile.copy"(%s0, %b9, %140, %141, %v0, %142, %143, %144) {rows = 4 : i64, cols = 16 : i64} : (!tile.scratch<f32, 64 : i64>, !tile.buffer<f32, "64", "read_write">, i64, i64, i64, i64, i64, i64) -> ()
  %145 = "tile.dim"() {index = 0 : i64} : () -> i64
  %146 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %147 = "tile.dim"() {index = 0 : i64} : () -> i64
  %148 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %149 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %150 = "tile.const"() {value = 1.0 : f64} : () -> i64
  %151 = "tile.const"() {value = 0.0 : f64} : () -> i64
  "tile.copy_runs"(%b9, %s0, %145, %146, %v0, %147, %148, %v0, %149, %150, %151) {rows = 4 : i64, cols = 16 : i64, run = 2 : i64} : (!tile.buffer<f32, "64", "read_write">, !tile.scratch<f32, 64 : i64>, i64, i64, i64, i64, i64, i64, i64, i64, i64) -> ()
  "vector.yield"() : () -> ()
}) {sym_name = "every_op", grid = "B*floordiv(T + 63, 64)", dims = ["T"], buffers = ["f64", "f32", "bf16", "f16", "e4m3", "i64", "i32", "bool", "odd \"name\"", "z", "by"], scratch = ["s"], vars = [i64, f64, f32, f32, f32, f32, i64, i32, i1, f32, f64, f32, f64, f32, f64, f32, f64, f32, f32, f32, f32, f32, i64, i64, f32, f32, f32, f32, f32, f32, f32, f32, f32, f32, f32, f32, f32, f32, f32, f32, f32, f32, f32, i1, i1, i1, i1, i1, i1, i1, i1, f32, f64, f32, f32, f32, f32, i64, i32, i1, i32, f32, i64, i64, i64, i64, i64, i64]} : () -> ()
"tile.kernel"() ({
^bb0(%v0: i64, %b0: !tile.buffer<bf16, "32*B*T", "read">, %b1: !tile.buffer<bf16, "16*B*S", "read">, %b2: !tile.buffer<bf16, "32*B*S", "read">, %b3: !tile.buffer<i32, "8*B*T", "read">, %b4: !tile.buffer<bf16, "64*B*T", "write">, %b5: !tile.buffer<f32, "4*B*T", "write">, %s0: !tile.scratch<i1, 32 : i64>, %s1: !tile.scratch<f32, 128 : i64>, %s2: !tile.scratch<i1, 8 : i64>, %s3: !tile.scratch<f32, 64 : i64>, %s4: !tile.scratch<f32, 64 : i64>, %s5: !tile.scratch<f32, 128 : i64>, %s6: !tile.scratch<f32, 8 : i64>, %s7: !tile.scratch<f32, 8 : i64>, %s8: !tile.scratch<f32, 8 : i64>, %s9: !tile.scratch<f32, 8 : i64>):
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
        %53 = "tile.load"(%b0, %52) : (!tile.buffer<bf16, "32*B*T", "read">, i64) -> f32
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
  %66 = "tile.const"() {value = 0.0 : f64} : () -> i64
  %67 = "tile.map"(%65, %66) {fn = "min"} : (i64, i64) -> i64
  %68 = "tile.map"(%59, %67) {fn = "max"} : (i64, i64) -> i64
  %69 = "tile.const"() {value = 0.0 : f64} : () -> i64
  %70 = "tile.map"(%68, %69) {fn = "max"} : (i64, i64) -> i64
  %v17 = "tile.let"(%70) {id = 17 : i64} : (i64) -> i64
  %71 = "tile.dim"() {index = 2 : i64} : () -> i64
  %72 = "tile.dim"() {index = 1 : i64} : () -> i64
  %73 = "tile.map"(%71, %72) {fn = "sub"} : (i64, i64) -> i64
  %74 = "tile.map"(%v16, %73) {fn = "add"} : (i64, i64) -> i64
  %75 = "tile.const"() {value = 1.0 : f64} : () -> i64
  %76 = "tile.map"(%74, %75) {fn = "add"} : (i64, i64) -> i64
  %77 = "tile.dim"() {index = 2 : i64} : () -> i64
  %78 = "tile.dim"() {index = 2 : i64} : () -> i64
  %79 = "tile.map"(%77, %78) {fn = "max"} : (i64, i64) -> i64
  %80 = "tile.map"(%76, %79) {fn = "min"} : (i64, i64) -> i64
  %81 = "tile.dim"() {index = 2 : i64} : () -> i64
  %82 = "tile.map"(%80, %81) {fn = "min"} : (i64, i64) -> i64
  %v18 = "tile.let"(%82) {id = 18 : i64} : (i64) -> i64
  %83 = "tile.map"(%v18, %v17) {fn = "sub"} : (i64, i64) -> i64
  %84 = "tile.const"() {value = 7.0 : f64} : () -> i64
  %85 = "tile.map"(%83, %84) {fn = "add"} : (i64, i64) -> i64
  %86 = "tile.const"() {value = 8.0 : f64} : () -> i64
  %87 = "tile.map"(%85, %86) {fn = "floor_div"} : (i64, i64) -> i64
  %v19 = "tile.let"(%87) {id = 19 : i64} : (i64) -> i64
  %88 = "tile.const"() {value = 0.0 : f64} : () -> i64
  "tile.for"(%88, %v19) ({
  ^bb0(%v20: i64):
    %89 = "tile.const"() {value = 8.0 : f64} : () -> i64
    %90 = "tile.map"(%v20, %89) {fn = "mul"} : (i64, i64) -> i64
    %91 = "tile.map"(%v17, %90) {fn = "add"} : (i64, i64) -> i64
    %v21 = "tile.let"(%91) {id = 21 : i64} : (i64) -> i64
    %92 = "tile.map"(%v18, %v21) {fn = "sub"} : (i64, i64) -> i64
    %93 = "tile.const"() {value = 8.0 : f64} : () -> i64
    %94 = "tile.map"(%92, %93) {fn = "min"} : (i64, i64) -> i64
    %v22 = "tile.let"(%94) {id = 22 : i64} : (i64) -> i64
    %95 = "tile.const"() {value = 0.0 : f64} : () -> i64
    %v23 = "tile.var"(%95) {id = 23 : i64} : (i64) -> !tile.place<i64>
    %96 = "tile.const"() {value = 0.0 : f64} : () -> i64
    "tile.for"(%96, %v22) ({
    ^bb0(%v24: i64):
      %97 = "tile.map"(%v21, %v24) {fn = "add"} : (i64, i64) -> i64
      %v25 = "tile.let"(%97) {id = 25 : i64} : (i64) -> i64
      %98 = "tile.const"() {value = 0.0 : f64} : () -> i64
      "tile.for"(%98, %v5) ({
      ^bb0(%v26: i64):
        %99 = "tile.map"(%v2, %v26) {fn = "add"} : (i64, i64) -> i64
        %v27 = "tile.let"(%99) {id = 27 : i64} : (i64) -> i64
        %100 = "tile.const"() {value = 8.0 : f64} : () -> i64
        %101 = "tile.map"(%v25, %100) {fn = "floor_div"} : (i64, i64) -> i64
        %v28 = "tile.let"(%101) {id = 28 : i64} : (i64) -> i64
        %102 = "tile.dim"() {index = 1 : i64} : () -> i64
        %103 = "tile.map"(%v3, %102) {fn = "mul"} : (i64, i64) -> i64
        %104 = "tile.map"(%103, %v27) {fn = "add"} : (i64, i64) -> i64
        %105 = "tile.const"() {value = 2.0 : f64} : () -> i64
        %106 = "tile.map"(%104, %105) {fn = "mul"} : (i64, i64) -> i64
        %107 = "tile.map"(%106, %v4) {fn = "add"} : (i64, i64) -> i64
        %108 = "tile.const"() {value = 4.0 : f64} : () -> i64
        %109 = "tile.map"(%107, %108) {fn = "mul"} : (i64, i64) -> i64
        %v29 = "tile.let"(%109) {id = 29 : i64} : (i64) -> i64
        %110 = "tile.const"() {value = 0.0 : f64} : () -> i64
        %v30 = "tile.var"(%110) {id = 30 : i64} : (i64) -> !tile.place<i64>
        %111 = "tile.const"() {value = 0.0 : f64} : () -> i64
        %112 = "tile.const"() {value = 4.0 : f64} : () -> i64
        "tile.for"(%111, %112) ({
        ^bb0(%v31: i64):
          %113 = "tile.map"(%v29, %v31) {fn = "add"} : (i64, i64) -> i64
          %114 = "tile.load"(%b3, %113) : (!tile.buffer<i32, "8*B*T", "read">, i64) -> i32
          %115 = "tile.cast"(%114) {to = i64} : (i32) -> i64
          %116 = "tile.map"(%115, %v28) {fn = "eq"} : (i64, i64) -> i1
          %117 = "tile.cast"(%116) {to = i64} : (i1) -> i64
          "tile.accumulate"(%v30, %117) {fn = "sum"} : (!tile.place<i64>, i64) -> ()
          "vector.yield"() : () -> ()
        }) {id = 31 : i64, kind = "vector"} : (i64, i64) -> ()
        %118 = "tile.dim"() {index = 2 : i64} : () -> i64
        %119 = "tile.dim"() {index = 1 : i64} : () -> i64
        %120 = "tile.map"(%118, %119) {fn = "sub"} : (i64, i64) -> i64
        %121 = "tile.map"(%v27, %120) {fn = "add"} : (i64, i64) -> i64
        %122 = "tile.map"(%v25, %121) {fn = "le"} : (i64, i64) -> i1
        %123 = "tile.dim"() {index = 2 : i64} : () -> i64
        %124 = "tile.dim"() {index = 1 : i64} : () -> i64
        %125 = "tile.map"(%123, %124) {fn = "sub"} : (i64, i64) -> i64
        %126 = "tile.map"(%v27, %125) {fn = "add"} : (i64, i64) -> i64
        %127 = "tile.const"() {value = 9.0 : f64} : () -> i64
        %128 = "tile.map"(%126, %127) {fn = "sub"} : (i64, i64) -> i64
        %129 = "tile.map"(%128, %v25) {fn = "lt"} : (i64, i64) -> i1
        %130 = "tile.const"() {value = 0.0 : f64} : () -> i64
        %131 = "tile.get"(%v30) : (!tile.place<i64>) -> i64
        %132 = "tile.map"(%130, %131) {fn = "lt"} : (i64, i64) -> i1
        %133 = "tile.map"(%129, %132) {fn = "or"} : (i1, i1) -> i1
        %134 = "tile.map"(%122, %133) {fn = "and"} : (i1, i1) -> i1
        %v32 = "tile.let"(%134) {id = 32 : i64} : (i1) -> i1
        %135 = "tile.const"() {value = 4.0 : f64} : () -> i64
        %136 = "tile.map"(%v24, %135) {fn = "mul"} : (i64, i64) -> i64
        %137 = "tile.map"(%136, %v26) {fn = "add"} : (i64, i64) -> i64
        "tile.store"(%s0, %137, %v32) : (!tile.scratch<i1, 32 : i64>, i64, i1) -> ()
        %138 = "tile.cast"(%v32) {to = i64} : (i1) -> i64
        "tile.accumulate"(%v23, %138) {fn = "sum"} : (!tile.place<i64>, i64) -> ()
        "vector.yield"() : () -> ()
      }) {id = 26 : i64, kind = "serial"} : (i64, i64) -> ()
      "vector.yield"() : () -> ()
    }) {id = 24 : i64, kind = "serial"} : (i64, i64) -> ()
    %139 = "tile.const"() {value = 0.0 : f64} : () -> i64
    %140 = "tile.get"(%v23) : (!tile.place<i64>) -> i64
    %141 = "tile.map"(%139, %140) {fn = "lt"} : (i64, i64) -> i1
    "tile.if"(%141) ({
      %142 = "tile.dim"() {index = 2 : i64} : () -> i64
      %143 = "tile.map"(%v3, %142) {fn = "mul"} : (i64, i64) -> i64
      %144 = "tile.map"(%143, %v21) {fn = "add"} : (i64, i64) -> i64
      %145 = "tile.const"() {value = 2.0 : f64} : () -> i64
      %146 = "tile.map"(%144, %145) {fn = "mul"} : (i64, i64) -> i64
      %147 = "tile.map"(%146, %v4) {fn = "add"} : (i64, i64) -> i64
      %148 = "tile.const"() {value = 8.0 : f64} : () -> i64
      %149 = "tile.map"(%147, %148) {fn = "mul"} : (i64, i64) -> i64
      %v33 = "tile.let"(%149) {id = 33 : i64} : (i64) -> i64
      %150 = "tile.const"() {value = 8.0 : f64} : () -> i64
      %151 = "tile.const"() {value = 8.0 : f64} : () -> i64
      %152 = "tile.const"() {value = 16.0 : f64} : () -> i64
      %153 = "tile.const"() {value = 1.0 : f64} : () -> i64
      %154 = "tile.const"() {value = 0.0 : f64} : () -> i64
      %155 = "tile.const"() {value = 8.0 : f64} : () -> i64
      %156 = "tile.const"() {value = 1.0 : f64} : () -> i64
      %157 = "tile.const"() {value = 0.0 : f64} : () -> i64
      %158 = "tile.const"() {value = 8.0 : f64} : () -> i64
      %159 = "tile.const"() {value = 1.0 : f64} : () -> i64
      "tile.dot"(%b1, %s3, %s4, %v22, %150, %151, %v33, %152, %153, %154, %155, %156, %157, %158, %159) {accumulate = false} : (!tile.buffer<bf16, "16*B*S", "read">, !tile.scratch<f32, 64 : i64>, !tile.scratch<f32, 64 : i64>, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64) -> ()
      %160 = "tile.const"() {value = 0.0 : f64} : () -> i64
      "tile.for"(%160, %v22) ({
      ^bb0(%v34: i64):
        %161 = "tile.const"() {value = 0.0 : f64} : () -> i64
        %162 = "tile.const"() {value = 2.0 : f64} : () -> i64
        "tile.for"(%161, %162) ({
        ^bb0(%v35: i64):
          %163 = "tile.const"() {value = 8.0 : f64} : () -> i64
          %164 = "tile.map"(%v34, %163) {fn = "mul"} : (i64, i64) -> i64
          %165 = "tile.const"() {value = 4.0 : f64} : () -> i64
          %166 = "tile.map"(%v35, %165) {fn = "mul"} : (i64, i64) -> i64
          %167 = "tile.map"(%164, %166) {fn = "add"} : (i64, i64) -> i64
          %v36 = "tile.let"(%167) {id = 36 : i64} : (i64) -> i64
          %168 = "tile.const"() {value = 0.0 : f64} : () -> i64
          %169 = "tile.const"() {value = 4.0 : f64} : () -> i64
          "tile.for"(%168, %169) ({
          ^bb0(%v37: i64):
            %170 = "tile.map"(%v36, %v37) {fn = "add"} : (i64, i64) -> i64
            %v38 = "tile.let"(%170) {id = 38 : i64} : (i64) -> i64
            %171 = "tile.const"() {value = 4.0 : f64} : () -> i64
            %172 = "tile.map"(%v34, %171) {fn = "mul"} : (i64, i64) -> i64
            %173 = "tile.map"(%172, %v37) {fn = "add"} : (i64, i64) -> i64
            %174 = "tile.load"(%s0, %173) : (!tile.scratch<i1, 32 : i64>, i64) -> i1
            %175 = "tile.load"(%s4, %v38) : (!tile.scratch<f32, 64 : i64>, i64) -> f32
            %176 = "tile.const"() {value = 0xFFF0000000000000 : f64} : () -> f32
            %177 = "tile.select"(%174, %175, %176) : (i1, f32, f32) -> f32
            "tile.store"(%s4, %v38, %177) : (!tile.scratch<f32, 64 : i64>, i64, f32) -> ()
            "vector.yield"() : () -> ()
          }) {id = 37 : i64, kind = "vector"} : (i64, i64) -> ()
          "vector.yield"() : () -> ()
        }) {id = 35 : i64, kind = "serial"} : (i64, i64) -> ()
        "vector.yield"() : () -> ()
      }) {id = 34 : i64, kind = "serial"} : (i64, i64) -> ()
      %178 = "tile.const"() {value = 0.0 : f64} : () -> i64
      %179 = "tile.const"() {value = 8.0 : f64} : () -> i64
      "tile.for"(%178, %179) ({
      ^bb0(%v39: i64):
        %180 = "tile.load"(%s6, %v39) : (!tile.scratch<f32, 8 : i64>, i64) -> f32
        "tile.store"(%s7, %v39, %180) : (!tile.scratch<f32, 8 : i64>, i64, f32) -> ()
        "vector.yield"() : () -> ()
      }) {id = 39 : i64, kind = "vector"} : (i64, i64) -> ()
      %181 = "tile.const"() {value = 0.0 : f64} : () -> i64
      "tile.for"(%181, %v22) ({
      ^bb0(%v40: i64):
        %182 = "tile.const"() {value = 0.0 : f64} : () -> i64
        %183 = "tile.const"() {value = 8.0 : f64} : () -> i64
        "tile.for"(%182, %183) ({
        ^bb0(%v41: i64):
          %184 = "tile.load"(%s7, %v41) : (!tile.scratch<f32, 8 : i64>, i64) -> f32
          %185 = "tile.const"() {value = 8.0 : f64} : () -> i64
          %186 = "tile.map"(%v40, %185) {fn = "mul"} : (i64, i64) -> i64
          %187 = "tile.map"(%186, %v41) {fn = "add"} : (i64, i64) -> i64
          %188 = "tile.load"(%s4, %187) : (!tile.scratch<f32, 64 : i64>, i64) -> f32
          %189 = "tile.map"(%184, %188) {fn = "max"} : (f32, f32) -> f32
          "tile.store"(%s7, %v41, %189) : (!tile.scratch<f32, 8 : i64>, i64, f32) -> ()
          "vector.yield"() : () -> ()
        }) {id = 41 : i64, kind = "vector"} : (i64, i64) -> ()
        "vector.yield"() : () -> ()
      }) {id = 40 : i64, kind = "serial"} : (i64, i64) -> ()
      %190 = "tile.const"() {value = 0.0 : f64} : () -> i64
      %191 = "tile.const"() {value = 8.0 : f64} : () -> i64
      "tile.for"(%190, %191) ({
      ^bb0(%v42: i64):
        %192 = "tile.load"(%s7, %v42) : (!tile.scratch<f32, 8 : i64>, i64) -> f32
        %v43 = "tile.let"(%192) {id = 43 : i64} : (f32) -> f32
        %193 = "tile.const"() {value = 0xFFF0000000000000 : f64} : () -> f32
        %194 = "tile.map"(%v43, %193) {fn = "eq"} : (f32, f32) -> i1
        %195 = "tile.const"() {value = 0.0 : f64} : () -> f32
        %196 = "tile.select"(%194, %195, %v43) : (i1, f32, f32) -> f32
        %v44 = "tile.let"(%196) {id = 44 : i64} : (f32) -> f32
        %197 = "tile.load"(%s6, %v42) : (!tile.scratch<f32, 8 : i64>, i64) -> f32
        %198 = "tile.map"(%197, %v44) {fn = "sub"} : (f32, f32) -> f32
        %199 = "tile.map"(%198) {fn = "exp"} : (f32) -> f32
        %v45 = "tile.let"(%199) {id = 45 : i64} : (f32) -> f32
        "tile.store"(%s6, %v42, %v43) : (!tile.scratch<f32, 8 : i64>, i64, f32) -> ()
        "tile.store"(%s7, %v42, %v44) : (!tile.scratch<f32, 8 : i64>, i64, f32) -> ()
        "tile.store"(%s8, %v42, %v45) : (!tile.scratch<f32, 8 : i64>, i64, f32) -> ()
        %200 = "tile.load"(%s9, %v42) : (!tile.scratch<f32, 8 : i64>, i64) -> f32
        %201 = "tile.map"(%200, %v45) {fn = "mul"} : (f32, f32) -> f32
        "tile.store"(%s9, %v42, %201) : (!tile.scratch<f32, 8 : i64>, i64, f32) -> ()
        "vector.yield"() : () -> ()
      }) {id = 42 : i64, kind = "vector"} : (i64, i64) -> ()
      %202 = "tile.const"() {value = 0.0 : f64} : () -> i64
      "tile.for"(%202, %v22) ({
      ^bb0(%v46: i64):
        %203 = "tile.const"() {value = 0.0 : f64} : () -> i64
        %204 = "tile.const"() {value = 8.0 : f64} : () -> i64
        "tile.for"(%203, %204) ({
        ^bb0(%v47: i64):
          %205 = "tile.const"() {value = 8.0 : f64} : () -> i64
          %206 = "tile.map"(%v46, %205) {fn = "mul"} : (i64, i64) -> i64
          %207 = "tile.map"(%206, %v47) {fn = "add"} : (i64, i64) -> i64
          %v48 = "tile.let"(%207) {id = 48 : i64} : (i64) -> i64
          %208 = "tile.load"(%s4, %v48) : (!tile.scratch<f32, 64 : i64>, i64) -> f32
          %209 = "tile.load"(%s7, %v47) : (!tile.scratch<f32, 8 : i64>, i64) -> f32
          %210 = "tile.map"(%208, %209) {fn = "sub"} : (f32, f32) -> f32
          %211 = "tile.map"(%210) {fn = "exp"} : (f32) -> f32
          %v49 = "tile.let"(%211) {id = 49 : i64} : (f32) -> f32
          "tile.store"(%s4, %v48, %v49) : (!tile.scratch<f32, 64 : i64>, i64, f32) -> ()
          %212 = "tile.load"(%s9, %v47) : (!tile.scratch<f32, 8 : i64>, i64) -> f32
          %213 = "tile.map"(%212, %v49) {fn = "add"} : (f32, f32) -> f32
          "tile.store"(%s9, %v47, %213) : (!tile.scratch<f32, 8 : i64>, i64, f32) -> ()
          "vector.yield"() : () -> ()
        }) {id = 47 : i64, kind = "vector"} : (i64, i64) -> ()
        "vector.yield"() : () -> ()
      }) {id = 46 : i64, kind = "serial"} : (i64, i64) -> ()
      %214 = "tile.const"() {value = 0.0 : f64} : () -> i64
      %215 = "tile.const"() {value = 8.0 : f64} : () -> i64
      "tile.for"(%214, %215) ({
      ^bb0(%v50: i64):
        %216 = "tile.load"(%s8, %v50) : (!tile.scratch<f32, 8 : i64>, i64) -> f32
        %v51 = "tile.let"(%216) {id = 51 : i64} : (f32) -> f32
        %217 = "tile.const"() {value = 0.0 : f64} : () -> i64
        %218 = "tile.const"() {value = 16.0 : f64} : () -> i64
        "tile.for"(%217, %218) ({
        ^bb0(%v52: i64):
          %219 = "tile.const"() {value = 16.0 : f64} : () -> i64
          %220 = "tile.map"(%v50, %219) {fn = "mul"} : (i64, i64) -> i64
          %221 = "tile.map"(%220, %v52) {fn = "add"} : (i64, i64) -> i64
          %v53 = "tile.let"(%221) {id = 53 : i64} : (i64) -> i64
          %222 = "tile.load"(%s5, %v53) : (!tile.scratch<f32, 128 : i64>, i64) -> f32
          %223 = "tile.map"(%222, %v51) {fn = "mul"} : (f32, f32) -> f32
          "tile.store"(%s5, %v53, %223) : (!tile.scratch<f32, 128 : i64>, i64, f32) -> ()
          "vector.yield"() : () -> ()
        }) {id = 52 : i64, kind = "vector"} : (i64, i64) -> ()
        "vector.yield"() : () -> ()
      }) {id = 50 : i64, kind = "serial"} : (i64, i64) -> ()
      %224 = "tile.get"(%v23) : (!tile.place<i64>) -> i64
      %225 = "tile.map"(%v5, %v22) {fn = "mul"} : (i64, i64) -> i64
      %226 = "tile.map"(%224, %225) {fn = "eq"} : (i64, i64) -> i1
      %v54 = "tile.let"(%226) {id = 54 : i64} : (i1) -> i1
      "tile.if"(%v54) ({
        %227 = "tile.dim"() {index = 2 : i64} : () -> i64
        %228 = "tile.map"(%v3, %227) {fn = "mul"} : (i64, i64) -> i64
        %229 = "tile.map"(%228, %v21) {fn = "add"} : (i64, i64) -> i64
        %230 = "tile.const"() {value = 2.0 : f64} : () -> i64
        %231 = "tile.map"(%229, %230) {fn = "mul"} : (i64, i64) -> i64
        %232 = "tile.map"(%231, %v4) {fn = "add"} : (i64, i64) -> i64
        %233 = "tile.const"() {value = 16.0 : f64} : () -> i64
        %234 = "tile.map"(%232, %233) {fn = "mul"} : (i64, i64) -> i64
        %v55 = "tile.let"(%234) {id = 55 : i64} : (i64) -> i64
        %235 = "tile.const"() {value = 8.0 : f64} : () -> i64
        %236 = "tile.const"() {value = 16.0 : f64} : () -> i64
        %237 = "tile.const"() {value = 0.0 : f64} : () -> i64
        %238 = "tile.const"() {value = 1.0 : f64} : () -> i64
        %239 = "tile.const"() {value = 8.0 : f64} : () -> i64
        %240 = "tile.const"() {value = 32.0 : f64} : () -> i64
        %241 = "tile.const"() {value = 1.0 : f64} : () -> i64
        %242 = "tile.const"() {value = 0.0 : f64} : () -> i64
        %243 = "tile.const"() {value = 16.0 : f64} : () -> i64
        %244 = "tile.const"() {value = 1.0 : f64} : () -> i64
        "tile.dot"(%s4, %b2, %s5, %235, %236, %v22, %237, %238, %239, %v55, %240, %241, %242, %243, %244) {accumulate = true} : (!tile.scratch<f32, 64 : i64>, !tile.buffer<bf16, "32*B*S", "read">, !tile.scratch<f32, 128 : i64>, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64) -> ()
        "vector.yield"() : () -> ()
      }, {
        "vector.yield"() : () -> ()
      }) : (i1) -> ()
      %245 = "tile.map"(%v54) {fn = "not"} : (i1) -> i1
      "tile.if"(%245) ({
        %246 = "tile.const"() {value = 0.0 : f64} : () -> i64
        %v56 = "tile.var"(%246) {id = 56 : i64} : (i64) -> !tile.place<i64>
        %247 = "tile.const"() {value = 0.0 : f64} : () -> i64
        "tile.for"(%247, %v22) ({
        ^bb0(%v57: i64):
          %248 = "tile.dim"() {index = 2 : i64} : () -> i64
          %249 = "tile.map"(%v3, %248) {fn = "mul"} : (i64, i64) -> i64
          %250 = "tile.map"(%v21, %v57) {fn = "add"} : (i64, i64) -> i64
          %251 = "tile.map"(%249, %250) {fn = "add"} : (i64, i64) -> i64
          %252 = "tile.const"() {value = 2.0 : f64} : () -> i64
          %253 = "tile.map"(%251, %252) {fn = "mul"} : (i64, i64) -> i64
          %254 = "tile.map"(%253, %v4) {fn = "add"} : (i64, i64) -> i64
          %255 = "tile.const"() {value = 16.0 : f64} : () -> i64
          %256 = "tile.map"(%254, %255) {fn = "mul"} : (i64, i64) -> i64
          %v58 = "tile.let"(%256) {id = 58 : i64} : (i64) -> i64
          %257 = "tile.const"() {value = 0.0 : f64} : () -> f32
          %v59 = "tile.var"(%257) {id = 59 : i64} : (f32) -> !tile.place<f32>
          %258 = "tile.const"() {value = 0.0 : f64} : () -> i64
          %259 = "tile.const"() {value = 16.0 : f64} : () -> i64
          "tile.for"(%258, %259) ({
          ^bb0(%v60: i64):
            %260 = "tile.map"(%v58, %v60) {fn = "add"} : (i64, i64) -> i64
            %261 = "tile.load"(%b2, %260) : (!tile.buffer<bf16, "32*B*S", "read">, i64) -> f32
            %262 = "tile.map"(%261) {fn = "abs"} : (f32) -> f32
            "tile.accumulate"(%v59, %262) {fn = "sum"} : (!tile.place<f32>, f32) -> ()
            "vector.yield"() : () -> ()
          }) {id = 60 : i64, kind = "vector"} : (i64, i64) -> ()
          %263 = "tile.get"(%v59) : (!tile.place<f32>) -> f32
          %264 = "tile.map"(%263) {fn = "is_finite"} : (f32) -> i1
          %v61 = "tile.let"(%264) {id = 61 : i64} : (i1) -> i1
          %265 = "tile.map"(%v61) {fn = "not"} : (i1) -> i1
          %v62 = "tile.let"(%265) {id = 62 : i64} : (i1) -> i1
          "tile.store"(%s2, %v57, %v62) : (!tile.scratch<i1, 8 : i64>, i64, i1) -> ()
          %266 = "tile.get"(%v56) : (!tile.place<i64>) -> i64
          %267 = "tile.cast"(%v62) {to = i64} : (i1) -> i64
          %268 = "tile.map"(%266, %267) {fn = "add"} : (i64, i64) -> i64
          "tile.assign"(%v56, %268) : (!tile.place<i64>, i64) -> ()
          %269 = "tile.const"() {value = 0.0 : f64} : () -> i64
          %270 = "tile.const"() {value = 16.0 : f64} : () -> i64
          "tile.for"(%269, %270) ({
          ^bb0(%v63: i64):
            %271 = "tile.const"() {value = 16.0 : f64} : () -> i64
            %272 = "tile.map"(%v57, %271) {fn = "mul"} : (i64, i64) -> i64
            %273 = "tile.map"(%272, %v63) {fn = "add"} : (i64, i64) -> i64
            %274 = "tile.map"(%v58, %v63) {fn = "add"} : (i64, i64) -> i64
            %275 = "tile.load"(%b2, %274) : (!tile.buffer<bf16, "32*B*S", "read">, i64) -> f32
            %276 = "tile.const"() {value = 0.0 : f64} : () -> f32
            %277 = "tile.select"(%v61, %275, %276) : (i1, f32, f32) -> f32
            "tile.store"(%s1, %273, %277) : (!tile.scratch<f32, 128 : i64>, i64, f32) -> ()
            "vector.yield"() : () -> ()
          }) {id = 63 : i64, kind = "vector"} : (i64, i64) -> ()
          "vector.yield"() : () -> ()
        }) {id = 57 : i64, kind = "serial"} : (i64, i64) -> ()
        %278 = "tile.const"() {value = 8.0 : f64} : () -> i64
        %279 = "tile.const"() {value = 16.0 : f64} : () -> i64
        %280 = "tile.const"() {value = 0.0 : f64} : () -> i64
        %281 = "tile.const"() {value = 1.0 : f64} : () -> i64
        %282 = "tile.const"() {value = 8.0 : f64} : () -> i64
        %283 = "tile.const"() {value = 0.0 : f64} : () -> i64
        %284 = "tile.const"() {value = 16.0 : f64} : () -> i64
        %285 = "tile.const"() {value = 1.0 : f64} : () -> i64
        %286 = "tile.const"() {value = 0.0 : f64} : () -> i64
        %287 = "tile.const"() {value = 16.0 : f64} : () -> i64
        %288 = "tile.const"() {value = 1.0 : f64} : () -> i64
        "tile.dot"(%s4, %s1, %s5, %278, %279, %v22, %280, %281, %282, %283, %284, %285, %286, %287, %288) {accumulate = true} : (!tile.scratch<f32, 64 : i64>, !tile.scratch<f32, 128 : i64>, !tile.scratch<f32, 128 : i64>, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64) -> ()
        %289 = "tile.const"() {value = 0.0 : f64} : () -> i64
        %290 = "tile.get"(%v56) : (!tile.place<i64>) -> i64
        %291 = "tile.map"(%289, %290) {fn = "lt"} : (i64, i64) -> i1
        "tile.if"(%291) ({
          %292 = "tile.const"() {value = 0.0 : f64} : () -> i64
          "tile.for"(%292, %v22) ({
          ^bb0(%v64: i64):
            %293 = "tile.load"(%s2, %v64) : (!tile.scratch<i1, 8 : i64>, i64) -> i1
            "tile.if"(%293) ({
              %294 = "tile.dim"() {index = 2 : i64} : () -> i64
              %295 = "tile.map"(%v3, %294) {fn = "mul"} : (i64, i64) -> i64
              %296 = "tile.map"(%v21, %v64) {fn = "add"} : (i64, i64) -> i64
              %297 = "tile.map"(%295, %296) {fn = "add"} : (i64, i64) -> i64
              %298 = "tile.const"() {value = 2.0 : f64} : () -> i64
              %299 = "tile.map"(%297, %298) {fn = "mul"} : (i64, i64) -> i64
              %300 = "tile.map"(%299, %v4) {fn = "add"} : (i64, i64) -> i64
              %301 = "tile.const"() {value = 16.0 : f64} : () -> i64
              %302 = "tile.map"(%300, %301) {fn = "mul"} : (i64, i64) -> i64
              %v65 = "tile.let"(%302) {id = 65 : i64} : (i64) -> i64
              %303 = "tile.const"() {value = 0.0 : f64} : () -> i64
              %304 = "tile.const"() {value = 2.0 : f64} : () -> i64
              "tile.for"(%303, %304) ({
              ^bb0(%v66: i64):
                %305 = "tile.const"() {value = 0.0 : f64} : () -> i64
                "tile.for"(%305, %v5) ({
                ^bb0(%v67: i64):
                  %306 = "tile.const"() {value = 4.0 : f64} : () -> i64
                  %307 = "tile.map"(%v66, %306) {fn = "mul"} : (i64, i64) -> i64
                  %308 = "tile.map"(%307, %v67) {fn = "add"} : (i64, i64) -> i64
                  %v68 = "tile.let"(%308) {id = 68 : i64} : (i64) -> i64
                  %309 = "tile.dim"() {index = 1 : i64} : () -> i64
                  %310 = "tile.map"(%v3, %309) {fn = "mul"} : (i64, i64) -> i64
                  %311 = "tile.map"(%v2, %v67) {fn = "add"} : (i64, i64) -> i64
                  %312 = "tile.map"(%310, %311) {fn = "add"} : (i64, i64) -> i64
                  %313 = "tile.const"() {value = 4.0 : f64} : () -> i64
                  %314 = "tile.map"(%312, %313) {fn = "mul"} : (i64, i64) -> i64
                  %315 = "tile.const"() {value = 2.0 : f64} : () -> i64
                  %316 = "tile.map"(%v4, %315) {fn = "mul"} : (i64, i64) -> i64
                  %317 = "tile.map"(%314, %316) {fn = "add"} : (i64, i64) -> i64
                  %318 = "tile.map"(%317, %v66) {fn = "add"} : (i64, i64) -> i64
                  %v69 = "tile.let"(%318) {id = 69 : i64} : (i64) -> i64
                  %319 = "tile.const"() {value = 4.0 : f64} : () -> i64
                  %320 = "tile.map"(%v64, %319) {fn = "mul"} : (i64, i64) -> i64
                  %321 = "tile.const"() {value = 4.0 : f64} : () -> i64
                  %322 = "tile.map"(%v68, %321) {fn = "rem"} : (i64, i64) -> i64
                  %323 = "tile.map"(%320, %322) {fn = "add"} : (i64, i64) -> i64
                  %324 = "tile.load"(%s0, %323) : (!tile.scratch<i1, 32 : i64>, i64) -> i1
                  "tile.if"(%324) ({
                    %325 = "tile.const"() {value = 8.0 : f64} : () -> i64
                    %326 = "tile.map"(%v64, %325) {fn = "mul"} : (i64, i64) -> i64
                    %327 = "tile.map"(%326, %v68) {fn = "add"} : (i64, i64) -> i64
                    %328 = "tile.load"(%s4, %327) : (!tile.scratch<f32, 64 : i64>, i64) -> f32
                    %v70 = "tile.let"(%328) {id = 70 : i64} : (f32) -> f32
                    %329 = "tile.const"() {value = 0.0 : f64} : () -> i64
                    %330 = "tile.const"() {value = 16.0 : f64} : () -> i64
                    "tile.for"(%329, %330) ({
                    ^bb0(%v71: i64):
                      %331 = "tile.const"() {value = 16.0 : f64} : () -> i64
                      %332 = "tile.map"(%v68, %331) {fn = "mul"} : (i64, i64) -> i64
                      %333 = "tile.map"(%332, %v71) {fn = "add"} : (i64, i64) -> i64
                      %v72 = "tile.let"(%333) {id = 72 : i64} : (i64) -> i64
                      %334 = "tile.load"(%s5, %v72) : (!tile.scratch<f32, 128 : i64>, i64) -> f32
                      %335 = "tile.map"(%v65, %v71) {fn = "add"} : (i64, i64) -> i64
                      %336 = "tile.load"(%b2, %335) : (!tile.buffer<bf16, "32*B*S", "read">, i64) -> f32
                      %337 = "tile.map"(%v70, %336) {fn = "mul"} : (f32, f32) -> f32
                      %338 = "tile.map"(%334, %337) {fn = "add"} : (f32, f32) -> f32
                      "tile.store"(%s5, %v72, %338) : (!tile.scratch<f32, 128 : i64>, i64, f32) -> ()
                      "vector.yield"() : () -> ()
                    }) {id = 71 : i64, kind = "vector"} : (i64, i64) -> ()
                    "vector.yield"() : () -> ()
                  }, {
                    "vector.yield"() : () -> ()
                  }) : (i1) -> ()
                  "vector.yield"() : () -> ()
                }) {id = 67 : i64, kind = "serial"} : (i64, i64) -> ()
                "vector.yield"() : () -> ()
              }) {id = 66 : i64, kind = "serial"} : (i64, i64) -> ()
              "vector.yield"() : () -> ()
            }, {
              "vector.yield"() : () -> ()
            }) : (i1) -> ()
            "vector.yield"() : () -> ()
          }) {id = 64 : i64, kind = "serial"} : (i64, i64) -> ()
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
  }) {id = 20 : i64, kind = "serial"} : (i64, i64) -> ()
  %339 = "tile.const"() {value = 0.0 : f64} : () -> i64
  %340 = "tile.const"() {value = 2.0 : f64} : () -> i64
  "tile.for"(%339, %340) ({
  ^bb0(%v73: i64):
    %341 = "tile.const"() {value = 0.0 : f64} : () -> i64
    "tile.for"(%341, %v5) ({
    ^bb0(%v74: i64):
      %342 = "tile.const"() {value = 4.0 : f64} : () -> i64
      %343 = "tile.map"(%v73, %342) {fn = "mul"} : (i64, i64) -> i64
      %344 = "tile.map"(%343, %v74) {fn = "add"} : (i64, i64) -> i64
      %v75 = "tile.let"(%344) {id = 75 : i64} : (i64) -> i64
      %345 = "tile.dim"() {index = 1 : i64} : () -> i64
      %346 = "tile.map"(%v3, %345) {fn = "mul"} : (i64, i64) -> i64
      %347 = "tile.map"(%v2, %v74) {fn = "add"} : (i64, i64) -> i64
      %348 = "tile.map"(%346, %347) {fn = "add"} : (i64, i64) -> i64
      %349 = "tile.const"() {value = 4.0 : f64} : () -> i64
      %350 = "tile.map"(%348, %349) {fn = "mul"} : (i64, i64) -> i64
      %351 = "tile.const"() {value = 2.0 : f64} : () -> i64
      %352 = "tile.map"(%v4, %351) {fn = "mul"} : (i64, i64) -> i64
      %353 = "tile.map"(%350, %352) {fn = "add"} : (i64, i64) -> i64
      %354 = "tile.map"(%353, %v73) {fn = "add"} : (i64, i64) -> i64
      %v76 = "tile.let"(%354) {id = 76 : i64} : (i64) -> i64
      %355 = "tile.load"(%s9, %v75) : (!tile.scratch<f32, 8 : i64>, i64) -> f32
      %v77 = "tile.let"(%355) {id = 77 : i64} : (f32) -> f32
      %356 = "tile.const"() {value = 0.0 : f64} : () -> f32
      %357 = "tile.map"(%v77, %356) {fn = "eq"} : (f32, f32) -> i1
      %v78 = "tile.let"(%357) {id = 78 : i64} : (i1) -> i1
      %358 = "tile.const"() {value = 0.0 : f64} : () -> f32
      %359 = "tile.load"(%s6, %v75) : (!tile.scratch<f32, 8 : i64>, i64) -> f32
      %360 = "tile.map"(%v77) {fn = "log"} : (f32) -> f32
      %361 = "tile.map"(%359, %360) {fn = "add"} : (f32, f32) -> f32
      %362 = "tile.select"(%v78, %358, %361) : (i1, f32, f32) -> f32
      "tile.store"(%b5, %v76, %362) : (!tile.buffer<f32, "4*B*T", "write">, i64, f32) -> ()
      %363 = "tile.const"() {value = 0.0 : f64} : () -> f32
      %364 = "tile.const"() {value = 1.0 : f64} : () -> f32
      %365 = "tile.map"(%364, %v77) {fn = "div"} : (f32, f32) -> f32
      %366 = "tile.select"(%v78, %363, %365) : (i1, f32, f32) -> f32
      %v79 = "tile.let"(%366) {id = 79 : i64} : (f32) -> f32
      %367 = "tile.const"() {value = 0.0 : f64} : () -> i64
      %368 = "tile.const"() {value = 16.0 : f64} : () -> i64
      "tile.for"(%367, %368) ({
      ^bb0(%v80: i64):
        %369 = "tile.const"() {value = 16.0 : f64} : () -> i64
        %370 = "tile.map"(%v76, %369) {fn = "mul"} : (i64, i64) -> i64
        %371 = "tile.map"(%370, %v80) {fn = "add"} : (i64, i64) -> i64
        %372 = "tile.const"() {value = 16.0 : f64} : () -> i64
        %373 = "tile.map"(%v75, %372) {fn = "mul"} : (i64, i64) -> i64
        %374 = "tile.map"(%373, %v80) {fn = "add"} : (i64, i64) -> i64
        %375 = "tile.load"(%s5, %374) : (!tile.scratch<f32, 128 : i64>, i64) -> f32
        %376 = "tile.map"(%375, %v79) {fn = "mul"} : (f32, f32) -> f32
        "tile.store"(%b4, %371, %376) : (!tile.buffer<bf16, "64*B*T", "write">, i64, f32) -> ()
        "vector.yield"() : () -> ()
      }) {id = 80 : i64, kind = "vector"} : (i64, i64) -> ()
      "vector.yield"() : () -> ()
    }) {id = 74 : i64, kind = "serial"} : (i64, i64) -> ()
    "vector.yield"() : () -> ()
  }) {id = 73 : i64, kind = "serial"} : (i64, i64) -> ()
  "vector.yield"() : () -> ()
}) {sym_name = "attend", grid = "2*B*floordiv(T + 3, 4)", dims = ["floordiv(T + 3, 4)", "T", "S"], buffers = ["q", "k", "v", "d0", "o", "lse"], scratch = ["mask", "values", "bad", "qt", "scores", "out", "max", "new_max", "alpha", "sum"], vars = [i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, i1, i64, i64, i64, i64, i64, i64, i64, i64, i64, i64, f32, f32, f32, i64, i64, i64, f32, i64, f32, i64, i64, i1, i64, i64, i64, i64, f32, i64, i1, i1, i64, i64, i64, i64, i64, i64, i64, f32, i64, i64, i64, i64, i64, i64, f32, i1, f32, i64]} : () -> ()
