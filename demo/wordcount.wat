;; Counts the words of its standard input and writes the number and a newline to its standard output.
;; A word is a run of bytes that are not white space (space, and 9 to 13: tab, line feed, vertical tab, form feed, return).
(module
  (import "wasi_snapshot_preview1" "fd_read" (func $fd_read (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "fd_write" (func $fd_write (param i32 i32 i32 i32) (result i32)))
  (import "wasi_snapshot_preview1" "proc_exit" (func $proc_exit (param i32)))
  ;; 0: an iovec (address, length); 8: bytes read or written; 16 to 47: the digits; 1024 to 65535: the input's current piece.
  (memory (export "memory") 1)

  (func $is_space (param $byte i32) (result i32)
    (i32.or
      (i32.eq (local.get $byte) (i32.const 32))
      (i32.lt_u (i32.sub (local.get $byte) (i32.const 9)) (i32.const 5))))

  ;; Reads the next piece and gives its length; zero at the end.
  (func $read (result i32)
    (i32.store (i32.const 0) (i32.const 1024))
    (i32.store (i32.const 4) (i32.const 64512))
    (if (call $fd_read (i32.const 0) (i32.const 0) (i32.const 1) (i32.const 8))
      (then (call $proc_exit (i32.const 1))))
    (i32.load (i32.const 8)))

  (func $count (result i64)
    (local $words i64) (local $inside i32) (local $at i32) (local $end i32)
    (block $done
      (loop $pieces
        (local.set $at (i32.const 1024))
        (local.set $end (i32.add (i32.const 1024) (call $read)))
        (br_if $done (i32.eq (local.get $at) (local.get $end)))
        (loop $bytes
          (if (call $is_space (i32.load8_u (local.get $at)))
            (then (local.set $inside (i32.const 0)))
            (else
              (if (i32.eqz (local.get $inside))
                (then (local.set $words (i64.add (local.get $words) (i64.const 1)))))
              (local.set $inside (i32.const 1))))
          (local.set $at (i32.add (local.get $at) (i32.const 1)))
          (br_if $bytes (i32.lt_u (local.get $at) (local.get $end))))
        (br $pieces)))
    (local.get $words))

  ;; Writes the number in decimal, its last digit first, backwards from a newline at 47.
  (func $print (param $number i64)
    (local $at i32)
    (local.set $at (i32.const 47))
    (i32.store8 (local.get $at) (i32.const 10))
    (loop $digits
      (local.set $at (i32.sub (local.get $at) (i32.const 1)))
      (i32.store8 (local.get $at)
        (i32.add (i32.const 48) (i32.wrap_i64 (i64.rem_u (local.get $number) (i64.const 10)))))
      (local.set $number (i64.div_u (local.get $number) (i64.const 10)))
      (br_if $digits (i64.ne (local.get $number) (i64.const 0))))
    (i32.store (i32.const 0) (local.get $at))
    (i32.store (i32.const 4) (i32.sub (i32.const 48) (local.get $at)))
    (if (call $fd_write (i32.const 1) (i32.const 0) (i32.const 1) (i32.const 8))
      (then (call $proc_exit (i32.const 1)))))

  (func (export "_start")
    (call $print (call $count))))
