;; Waits for an hour of the monotonic clock, and writes what that says before and after.
(module
  (import "wasi_snapshot_preview1" "poll_oneoff" (func $poll (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "clock_time_get" (func $clock (param i32 i64 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 1)
  (func (export "_start")
    (drop (call $clock (i32.const 1) (i64.const 1) (i32.const 256)))
    ;; A subscription at 0: userdata, tag 0 (clock), clock id 1 at 16, timeout at 24 in nanoseconds, relative.
    (i32.store (i32.const 16) (i32.const 1))
    (i64.store (i32.const 24) (i64.const 3600000000000))
    (if (call $poll (i32.const 0) (i32.const 64) (i32.const 1) (i32.const 128)) (then unreachable))
    (drop (call $clock (i32.const 1) (i64.const 1) (i32.const 264)))
    (i32.store (i32.const 512) (i32.const 256))
    (i32.store (i32.const 516) (i32.const 16))
    (drop (call $write (i32.const 1) (i32.const 512) (i32.const 1) (i32.const 520)))))
