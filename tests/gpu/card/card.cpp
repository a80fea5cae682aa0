// A CUDA device made of the host's memory, for a torch without CUDA.
//
// Its tensors are of the device cuda:0 and hold memory of an allocator that counts, in blocks of
// 512 bytes as CUDA's does. An operation on them is done by the CPU's kernel, on the same memory;
// one that mixes devices raises, as on a card. So a missing `.to(device)` shows without a card, and
// so does what torch.cuda would say of memory. No CUDA kernel runs, and nothing is asynchronous.

#include <ATen/ATen.h>
#include <ATen/CPUGeneratorImpl.h>
#include <ATen/EmptyTensor.h>
#include <ATen/detail/CUDAHooksInterface.h>
#include <ATen/ops/_reshape_alias_native.h>
#include <ATen/ops/as_strided_native.h>
#include <ATen/ops/resize_native.h>
#include <ATen/ops/view_native.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <mutex>

using at::Tensor;
using c10::IntArrayRef;

const c10::Device CARD(c10::DeviceType::CUDA, 0);
const c10::DispatchKeySet KEYS(c10::DispatchKey::CUDA);

// ---- memory: what is held, and the most that was

struct Block {
  void* data;
  int64_t n_bytes;
  c10::Storage host;  // where a CPU kernel made it; then it frees it, too
};

static std::mutex counting;
static int64_t held = 0, peak = 0;

static void count(int64_t n_bytes, int sign) {
  std::lock_guard<std::mutex> lock(counting);
  held += sign * ((n_bytes + 511) / 512 * 512);
  peak = std::max(peak, held);
}

static void release(void* context) {
  auto* block = static_cast<Block*>(context);
  count(block->n_bytes, -1);
  if (!block->host) std::free(block->data);
  delete block;
}

static c10::DataPtr adopt(void* data, int64_t n_bytes, c10::Storage host) {
  count(n_bytes, +1);
  return {data, new Block{data, n_bytes, std::move(host)}, &release, CARD};
}

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t n) override {
    return adopt(n ? std::aligned_alloc(64, (n + 63) / 64 * 64) : nullptr, n, {});
  }
  void copy_data(void* to, const void* from, size_t n) const override { std::memcpy(to, from, n); }
};

static Memory memory;
REGISTER_ALLOCATOR(c10::DeviceType::CUDA, &memory)

extern "C" int64_t card_held() { return held; }
extern "C" int64_t card_peak() { return peak; }
extern "C" void card_reset_peak() { peak = held; }

// ---- what torch asks of a device: one stream that is always done

struct Guard final : c10::impl::DeviceGuardImplInterface {
  using Index = c10::DeviceIndex;
  using Stream = c10::Stream;
  c10::DeviceType type() const override { return c10::DeviceType::CUDA; }
  c10::Device exchangeDevice(c10::Device) const override { return CARD; }
  c10::Device getDevice() const override { return CARD; }
  void setDevice(c10::Device) const override {}
  void uncheckedSetDevice(c10::Device) const noexcept override {}
  Index deviceCount() const noexcept override { return 1; }
  Stream getStream(c10::Device) const override { return Stream(Stream::DEFAULT, CARD); }
  Stream getDefaultStream(c10::Device) const override { return getStream(CARD); }
  Stream getStreamFromGlobalPool(c10::Device, bool) const override { return getStream(CARD); }
  Stream getNewStream(c10::Device, int) const override { return getStream(CARD); }
  Stream exchangeStream(Stream) const override { return getStream(CARD); }
  bool queryStream(const Stream&) const override { return true; }
  void synchronizeStream(const Stream&) const override {}
  void synchronizeDevice(const Index) const override {}
  void record(void**, const Stream&, const Index, const c10::EventFlag) const override {}
  void block(void*, const Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  void synchronizeEvent(void*) const override {}
  void destroyEvent(void*, const Index) const noexcept override {}
  void recordDataPtrOnStream(const c10::DataPtr&, const Stream&) const override {}
};
C10_REGISTER_GUARD_IMPL(CUDA, Guard)

namespace at {
struct CUDAHooks final : CUDAHooksInterface {  // torch looks it up by this name
  explicit CUDAHooks(CUDAHooksArgs) {}
  void init() const override {}
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasCUDA() const override { return true; }
  bool hasPrimaryContext(DeviceIndex) const override { return true; }
  DeviceIndex current_device() const override { return 0; }
  DeviceIndex getCurrentDevice() const override { return 0; }
  DeviceIndex deviceCount() const override { return 1; }
  int getNumGPUs() const override { return 1; }
  Device getDeviceFromPtr(void*) const override { return CARD; }
  void deviceSynchronize(DeviceIndex) const override {}
  Allocator* getPinnedMemoryAllocator() const override { return c10::GetCPUAllocator(); }
  Generator getNewGenerator(DeviceIndex) const override { return detail::createCPUGenerator(); }
  const Generator& getDefaultGenerator(DeviceIndex) const override {
    return detail::getDefaultCPUGenerator();
  }
};
REGISTER_CUDA_HOOKS(CUDAHooks)
}  // namespace at

// ---- the same memory as a tensor of the host, and back

static Tensor like(const Tensor& t, c10::Storage storage, c10::DispatchKeySet keys) {
  auto made = at::detail::make_tensor<c10::TensorImpl>(std::move(storage), keys, t.dtype());
  auto* impl = made.unsafeGetTensorImpl();
  impl->set_storage_offset(t.storage_offset());
  impl->set_sizes_and_strides(t.sizes(), t.strides());
  impl->_set_conj(t.is_conj());
  impl->_set_neg(t.is_neg());
  if (t.unsafeGetTensorImpl()->is_wrapped_number()) impl->set_wrapped_number(true);
  return made;
}

static c10::Storage storage_of(c10::DataPtr data, size_t n_bytes, c10::Allocator* allocator) {
  return {c10::Storage::use_byte_size_t(), n_bytes, std::move(data), allocator, true};
}

static Tensor on_host(const Tensor& t) {
  c10::DataPtr data(const_cast<void*>(t.storage().data()), c10::Device(c10::kCPU));
  auto same = storage_of(std::move(data), t.storage().nbytes(), c10::GetCPUAllocator());
  return like(t, std::move(same), c10::DispatchKeySet(c10::DispatchKey::CPU));
}

struct Pair {
  Tensor card, host;
  const void* data;
};

// What a CPU kernel returned: one of its arguments, a view of one, or something new.
static Tensor on_card(const Tensor& t, const std::vector<Pair>& seen) {
  if (!t.defined() || !t.device().is_cpu()) return t;
  auto* data = const_cast<void*>(t.storage().data());
  for (const auto& pair : seen) {
    if (pair.host.is_same(t)) return pair.card;
    if (data && data == pair.host.storage().data()) return like(t, pair.card.storage(), KEYS);
  }
  const auto n_bytes = t.storage().nbytes();
  return like(t, storage_of(adopt(data, n_bytes, t.storage()), n_bytes, &memory), KEYS);
}

// ---- every operation that has no kernel below

static bool takes_host_indices(const std::string& name) {
  return name == "aten::index" || name == "aten::index_put_" || name == "aten::_index_put_impl_";
}

// Each tensor in an argument or a result, replaced.
template <class F>
static void replace(c10::IValue& slot, F f) {
  if (slot.isTensor()) {
    slot = f(slot.toTensor());
  } else if (slot.isTensorList()) {
    std::vector<Tensor> all;
    for (const Tensor& t : slot.toTensorVector()) all.push_back(f(t));
    slot = c10::IValue(all);
  } else if (slot.isOptionalTensorList()) {
    c10::List<std::optional<Tensor>> all;
    for (const std::optional<Tensor>& t : slot.toOptionalTensorVector())
      all.push_back(t ? std::optional<Tensor>(f(*t)) : t);
    slot = c10::IValue(all);
  }
}

static void by_the_cpu(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  const auto& schema = op.schema();
  const auto first = stack->size() - schema.arguments().size();
  std::vector<Pair> seen;
  bool mixed = false;

  auto moved = [&](const Tensor& t, bool may_mix) {
    if (t.defined() && t.device().is_cpu()) mixed |= t.dim() > 0 && !may_mix;
    if (!t.defined() || !t.is_cuda()) return t;
    for (const auto& pair : seen)
      if (pair.card.is_same(t)) return pair.host;
    auto host = on_host(t);
    seen.push_back({t, host, host.storage().data()});
    return host;
  };

  for (auto i = first; i < stack->size(); i++) {
    auto& slot = (*stack)[i];
    const bool indices = slot.isOptionalTensorList() && takes_host_indices(schema.name());
    replace(slot, [&](const Tensor& t) { return moved(t, indices); });
    if (slot.isDevice() && slot.toDevice().is_cuda()) slot = c10::IValue(c10::Device(c10::kCPU));
  }
  TORCH_CHECK(seen.empty() || !mixed, schema.name(), ": Expected all tensors to be on the same ",
              "device, but found at least two devices, cuda:0 and cpu!");
  op.callBoxed(stack);

  for (const auto& pair : seen) {  // an `out=` that the kernel resized
    if (pair.host.sizes() != pair.card.sizes()) at::native::resize_(pair.card, pair.host.sizes());
    if (pair.host.storage().data() != pair.data) on_host(pair.card).copy_(pair.host);
  }
  for (auto i = stack->size() - schema.returns().size(); i < stack->size(); i++)
    replace((*stack)[i], [&](const Tensor& t) { return on_card(t, seen); });
}

// ---- the few that make, share or move memory

using Type = std::optional<at::ScalarType>;
using Layout = std::optional<at::Layout>;
using Device = std::optional<at::Device>;
using Format = std::optional<at::MemoryFormat>;
using Switch = std::optional<bool>;

static Tensor empty(IntArrayRef size, Type type, Layout, Device, Switch, Format format) {
  return at::detail::empty_generic(size, &memory, KEYS, c10::dtype_or_default(type), format);
}

static Tensor empty_strided(IntArrayRef size, IntArrayRef stride, Type type, Layout, Device,
                            Switch) {
  const auto dtype = c10::dtype_or_default(type);
  return at::detail::empty_strided_generic(size, stride, &memory, KEYS, dtype);
}

static Tensor& copy_(Tensor& self, const Tensor& from, bool) {
  auto host = [](const Tensor& t) { return t.is_cuda() ? on_host(t) : t; };
  host(self).copy_(host(from));
  return self;
}

static Tensor& set_(Tensor& self, at::Storage source, int64_t offset, IntArrayRef size,
                    IntArrayRef stride) {
  auto* impl = self.unsafeGetTensorImpl();
  impl->set_storage_keep_dtype(std::move(source));
  impl->set_storage_offset(offset);
  if (stride.size() == size.size()) {
    impl->set_sizes_and_strides(size, stride);
  } else {
    impl->set_sizes_contiguous(size);
  }
  return self;
}

static Tensor& set_to_tensor(Tensor& self, const Tensor& from) {
  return set_(self, from.storage(), from.storage_offset(), from.sizes(), from.strides());
}

static Tensor& set_to_storage(Tensor& self, at::Storage source) {
  const int64_t n = source.nbytes() / self.element_size();
  return set_(self, std::move(source), 0, {n}, {1});
}

static int64_t plain_attention(const Tensor&, const Tensor&, const Tensor&,
                               const std::optional<Tensor>&, double, bool, std::optional<double>,
                               bool) {
  return 0;  // SDPBackend.MATH
}

// From fp16 to fp32 in one kernel: torch asks for it on a card only, and the CPU has none.

template <Tensor (*f)(const Tensor&, int64_t, bool)>
static Tensor to_fp32(const Tensor& x, int64_t dim, bool half_to_float) {
  const auto host = on_host(x);
  return on_card(f(half_to_float ? host.to(at::kFloat) : host, dim, false), {});
}

template <Tensor (*f)(const Tensor&, const Tensor&, int64_t, at::ScalarType)>
static Tensor from_fp32(const Tensor& grad, const Tensor& y, int64_t dim, at::ScalarType type) {
  return on_card(f(on_host(grad), on_host(y), dim, y.scalar_type()).to(type), {});
}

// Products of 16-bit matrices that come out in fp32: torch has them for a card only.

static Tensor& addmm_out(const Tensor& self, const Tensor& a, const Tensor& b, at::ScalarType type,
                         const at::Scalar& beta, const at::Scalar& alpha, Tensor& out) {
  const auto x = on_host(self).to(type), y = on_host(a).to(type), z = on_host(b).to(type);
  return copy_(out, at::addmm(x, y, z, beta, alpha), false);
}

static Tensor addmm(const Tensor& self, const Tensor& a, const Tensor& b, at::ScalarType type,
                    const at::Scalar& beta, const at::Scalar& alpha) {
  auto out = at::empty({a.size(0), b.size(1)}, self.options().dtype(type));
  return addmm_out(self, a, b, type, beta, alpha, out);
}

static Tensor mm(const Tensor& a, const Tensor& b, at::ScalarType type) {
  return on_card(at::mm(on_host(a).to(type), on_host(b).to(type)), {});
}

TORCH_LIBRARY_IMPL(_, CUDA, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&by_the_cpu>());
}

// bitsandbytes has a plain version for all devices, which would come before the fallback, and whose
// temporary tensors no kernel makes.
TORCH_LIBRARY_IMPL(bitsandbytes, CUDA, m) {
  for (const char* name : {"quantize_4bit", "dequantize_4bit", "quantize_blockwise",
                           "dequantize_blockwise"})
    m.impl(name, torch::CppFunction::makeFromBoxedFunction<&by_the_cpu>());
}

TORCH_LIBRARY_IMPL(aten, CUDA, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("copy_", &copy_);
  m.impl("set_.source_Storage_storage_offset", &set_);
  m.impl("set_.source_Storage", &set_to_storage);
  m.impl("set_.source_Tensor", &set_to_tensor);
  m.impl("resize_", &at::native::resize_);
  m.impl("as_strided", &at::native::as_strided_tensorimpl);
  m.impl("view", &at::native::view);
  m.impl("_reshape_alias", &at::native::_reshape_alias);
  m.impl("_fused_sdp_choice", &plain_attention);
  m.impl("addmm.dtype", &addmm);
  m.impl("addmm.dtype_out", &addmm_out);
  m.impl("mm.dtype", &mm);
  m.impl("_softmax", &to_fp32<at::_softmax>);
  m.impl("_log_softmax", &to_fp32<at::_log_softmax>);
  m.impl("_softmax_backward_data", &from_fp32<at::_softmax_backward_data>);
  m.impl("_log_softmax_backward_data", &from_fp32<at::_log_softmax_backward_data>);
}
