#pragma once

#include <cstddef>

namespace ldm {

// Uninitialised memory, aligned to a huge page. Throws std::bad_alloc.
void* take_memory(std::size_t bytes);

// Gives it back; up to a gigabyte is kept for who next asks for as much.
void return_memory(void* block, std::size_t bytes) noexcept;

// Hands what is kept to the system; returns how much that was.
std::size_t release_memory();

}  // namespace ldm
