;; Writes to its output, or with an argument to standard error, for as long as it may.
(module
  (import "wasi_snapshot_preview1" "args_sizes_get" (func $args (param i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $write (param i32 i32 i32 i32) (result i32)))
  (memory (export "memory") 2)
  (func (export "_start") (local $count i32) (local $stream i32)
    (drop (call $args (i32.const 0) (i32.const 4)))
    (local.set $stream (i32.load (i32.const 0)))
    (i32.store (i32.const 8) (i32.const 64))
    (i32.store (i32.const 12) (i32.const 65536))
    (loop $more
      (drop (call $write (local.get $stream) (i32.const 8) (i32.const 1) (i32.const 16)))
      (local.set $count (i32.add (local.get $count) (i32.const 1)))
      (br_if $more (i32.lt_u (local.get $count) (i32.const 1000))))))
