;; Writes 512 bytes with everything that could differ from machine to machine: NaNs of all makings, vectors, relaxed
;; vector instructions, both clocks, random bytes, what memory grows to, which event comes first, and a sum of its input.
(module
  (import "wasi_snapshot_preview1" "clock_time_get" (func $clock (param i32 i64 i32) (result i32)))
  (import "wasi_snapshot_preview1" "random_get" (func $random (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_read" (func $read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  ;; At 1024 the numbers that NaNs are made of: a NaN with a payload and a sign, minus one, infinity, zero.
  (data (i32.const 1024) "\34\12\c0\ff\00\00\80\bf\00\00\80\7f\00\00\00\00")
  (func $payload (result f32) (f32.load (i32.const 1024)))
  (func $minus_one (result f32) (f32.load (i32.const 1028)))
  (func $infinity (result f32) (f32.load (i32.const 1032)))
  (func $zero (result f32) (f32.load (i32.const 1036)))
  (func (export "_start")
    ;; 0 to 36: single numbers.
    (f32.store (i32.const 0) (f32.div (call $zero) (call $zero)))
    (f32.store (i32.const 4) (f32.sqrt (call $minus_one)))
    (f32.store (i32.const 8) (f32.sub (call $infinity) (call $infinity)))
    (f32.store (i32.const 12) (f32.add (call $payload) (call $minus_one)))
    (f32.store (i32.const 16) (f32.min (call $payload) (call $zero)))
    (f32.store (i32.const 20) (f32.mul (call $infinity) (call $zero)))
    (f64.store (i32.const 24) (f64.promote_f32 (call $payload)))
    (f32.store (i32.const 32) (f32.demote_f64 (f64.div (f64.const 1) (f64.const 3))))
    ;; 48 to 96: vectors.
    (v128.store (i32.const 48) (f32x4.div (v128.load (i32.const 1024)) (f32x4.splat (call $zero))))
    (v128.store (i32.const 64)
      (f32x4.relaxed_madd (v128.load (i32.const 1024)) (f32x4.splat (f32.const 3.1415926)) (f32x4.splat (f32.const 1e-7))))
    (v128.store (i32.const 80) (i32x4.relaxed_trunc_f32x4_s (v128.load (i32.const 1024))))
    ;; 96 and 100: pages before growing, within the task's limit and beyond.
    (i32.store (i32.const 96) (memory.grow (i32.const 10)))
    (i32.store (i32.const 100) (memory.grow (i32.const 60000)))
    ;; 104: how many events come first of a nanosecond and the input; 112: the first one's userdata.
    (i64.store (i32.const 2048) (i64.const 7))
    (i32.store (i32.const 2064) (i32.const 1))
    (i64.store (i32.const 2072) (i64.const 1))
    (i64.store (i32.const 2096) (i64.const 9))
    (i32.store8 (i32.const 2104) (i32.const 1))
    (drop (call $poll (i32.const 2048) (i32.const 4096) (i32.const 2) (i32.const 104)))
    (i64.store (i32.const 112) (i64.load (i32.const 4096)))
    ;; 128 to 152: the clocks; 160 to 288: random bytes; 296: what of the input one reading gives.
    (drop (call $clock (i32.const 0) (i64.const 1) (i32.const 128)))
    (drop (call $clock (i32.const 1) (i64.const 1) (i32.const 136)))
    (drop (call $clock (i32.const 1) (i64.const 1) (i32.const 144)))
    (drop (call $random (i32.const 160) (i32.const 128)))
    (i32.store (i32.const 3000) (i32.const 304))
    (i32.store (i32.const 3004) (i32.const 128))
    (drop (call $read (i32.const 0) (i32.const 3000) (i32.const 1) (i32.const 296)))
    ;; What lies in memory that nobody wrote, up to 512.
    (i32.store (i32.const 3000) (i32.const 0))
    (i32.store (i32.const 3004) (i32.const 512))
    (drop (call $write (i32.const 1) (i32.const 3000) (i32.const 1) (i32.const 3008)))))
