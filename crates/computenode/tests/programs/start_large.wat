;; Wants 1 GiB from its start.
(module
  (memory (export "memory") 16384)
  (func (export "_start")))
