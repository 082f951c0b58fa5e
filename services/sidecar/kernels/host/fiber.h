// Stacks that a thread of the host switches between.
#pragma once

#include <cstddef>
#include <vector>

namespace simt {

/// A function that runs on a stack of its own and can be left and entered again.
class Fiber {
 public:
  /// `stack_end` is one past the highest byte, a multiple of 16. `body` must never return.
  void start(void* stack_end, void (*body)());
  /// Leaves the stack that `from` describes and goes on where this one was left.
  void enter(Fiber& from);

 private:
  void* stack_pointer_ = nullptr;
};

/// Stacks that are kept between launches; each has a page below it that may not be touched.
class Stacks {
 public:
  ~Stacks();
  void* end_of(size_t index);

 private:
  std::vector<char*> stacks_;
};

}  // namespace simt
