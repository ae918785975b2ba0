// polycast_run: loads one build, checks it, runs its golden samples and times it. Nothing of polycast is needed.
//
//   polycast_run BUILD [--runs N] [--threads N] [--lib PATH]... [--no-golden]
//
// C++17, one file, no dependency. The runtime that the build is for (onnxruntime, LiteRT or TVM) is found when the
// program runs, so that one program serves all three: beside this program, where --lib says (a file or a folder, given
// once or more), or where the system looks. What is declared of each runtime is the part of its C interface that is
// used here.
//
// A build is checked first: every file's size and sha256, links, paths, files that the manifest does not know.
// Nothing of a build that fails a check is ever loaded.
//
// Stdout has one JSON object: what is wrong ("error"), or what was found. Exit status: 0 the golden is met, 1 an error
// or a golden that is missed, 2 wrong usage.

#include <dirent.h>
#include <dlfcn.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/utsname.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <exception>
#include <fstream>
#include <functional>
#include <initializer_list>
#include <limits>
#include <map>
#include <memory>
#include <new>
#include <set>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace {

constexpr int kSchema = 2;
constexpr int kDefaultRuns = 50;
constexpr int kWarmUps = 5;

// What is wrong with a build, a file or a runtime, in a sentence for the user.
struct Error : std::runtime_error {
  using std::runtime_error::runtime_error;
};

void require(bool holds, const std::string& otherwise) {
  if (!holds) throw Error(otherwise);
}

// ---- JSON ----------------------------------------------------------------------------------------------------------

// A JSON value. Objects keep the order of their keys. What is asked of it and it is not, is an error that names it.
class Json {
 public:
  enum class Kind { kNull, kBool, kNumber, kString, kArray, kObject };
  using Members = std::vector<std::pair<std::string, Json>>;

  Json(Kind kind = Kind::kNull) : kind_(kind) {}
  Json(bool value) : kind_(Kind::kBool), bool_(value) {}
  Json(double value) : kind_(Kind::kNumber), number_(value) {}
  Json(const std::string& value) : kind_(Kind::kString), text_(value) {}
  Json(const char* value) : kind_(Kind::kString), text_(value) {}
  Json(std::initializer_list<Members::value_type> members) : kind_(Kind::kObject), members_(members) {}

  bool truth() const { return as(Kind::kBool, "true or false").bool_; }
  double number() const { return as(Kind::kNumber, "a number").number_; }
  const std::string& text() const { return as(Kind::kString, "a text").text_; }
  const std::vector<Json>& items() const { return as(Kind::kArray, "a list").items_; }
  const Members& members() const { return as(Kind::kObject, "an object").members_; }

  int64_t integer() const {
    const double value = number();
    require(value == std::floor(value) && std::fabs(value) <= 9007199254740992.0, where_ + " is no whole number");
    return static_cast<int64_t>(value);
  }

  size_t count() const {
    require(integer() >= 0, where_ + " is negative");
    return static_cast<size_t>(integer());
  }

  // The member `key`, or null where there is none.
  const Json* find(const std::string& key) const {
    for (const auto& member : members())
      if (member.first == key) return &member.second;
    return nullptr;
  }

  const Json& operator[](const std::string& key) const {
    const Json* found = find(key);
    require(found != nullptr, where_ + " lacks " + key);
    return *found;
  }

  void add(Json item) { items_.push_back(std::move(item)); }

  std::string dump() const {
    std::string out;
    switch (kind_) {
      case Kind::kNull: return "null";
      case Kind::kBool: return bool_ ? "true" : "false";
      case Kind::kNumber: return spell(number_);
      case Kind::kString: return quoted(text_);
      case Kind::kArray:
        for (const Json& item : items_) out += (out.empty() ? "" : ", ") + item.dump();
        return "[" + out + "]";
      default:
        for (const auto& [key, value] : members_) out += (out.empty() ? "" : ", ") + quoted(key) + ": " + value.dump();
        return "{" + out + "}";
    }
  }

  static std::string quoted(const std::string& text) {
    std::string out = "\"";
    for (const char c : text) {
      char escaped[8] = {'\\', c};
      const bool is_control = static_cast<unsigned char>(c) < 0x20;
      if (is_control) std::snprintf(escaped, sizeof escaped, "\\u%04x", static_cast<unsigned>(c));
      out += is_control || c == '"' || c == '\\' ? escaped : std::string(1, c);
    }
    return out + '"';
  }

 private:
  friend class JsonReader;

  static std::string spell(double number) {
    if (!std::isfinite(number)) return "null";
    char digits[400];
    std::snprintf(digits, sizeof digits, number == std::floor(number) ? "%.0f" : "%.6g", number);
    return digits;
  }

  const Json& as(Kind kind, const char* expected) const {
    require(kind_ == kind, where_ + " is not " + expected);
    return *this;
  }

  Kind kind_ = Kind::kNull;
  bool bool_ = false;
  double number_ = 0;
  std::string text_, where_ = "it";  // where_: what this value is, for messages
  std::vector<Json> items_;
  Members members_;
};

// Reads RFC 8259 to the letter: no comments, no NaN, no key twice, nothing after the value.
class JsonReader {
 public:
  JsonReader(const std::string& text, std::string name) : text_(text), name_(std::move(name)) {}

  Json read() {
    Json value = read_value(name_, 0);
    if (peek_past_space() != '\0' || at_ < text_.size()) fail("something follows the end");
    return value;
  }

 private:
  static constexpr int kDeepest = 64;

  [[noreturn]] void fail(const std::string& why) const {
    throw Error(name_ + " is damaged: " + why + " (byte " + std::to_string(at_) + ")");
  }

  char peek() const { return at_ < text_.size() ? text_[at_] : '\0'; }

  char peek_past_space() {
    while (peek() == ' ' || peek() == '\t' || peek() == '\n' || peek() == '\r') ++at_;
    return peek();
  }

  char next() {
    if (at_ >= text_.size()) fail("it ends too early");
    return text_[at_++];
  }

  Json expect(const char* word, Json meaning = {}) {
    for (const char* c = word; *c; ++c)
      if (next() != *c) fail(std::string("expected ") + word);
    return meaning;
  }

  Json read_value(const std::string& where, int depth) {
    if (depth > kDeepest) fail("it is nested too deeply");
    Json value;
    switch (peek_past_space()) {
      case '{': value = read_object(where, depth); break;
      case '[': value = read_array(where, depth); break;
      case '"': value = read_string(); break;
      case 't': value = expect("true", true); break;
      case 'f': value = expect("false", false); break;
      case 'n': value = expect("null"); break;
      default: value = read_number();
    }
    value.where_ = where;
    return value;
  }

  Json read_object(const std::string& where, int depth) {
    Json object(Json::Kind::kObject);
    std::set<std::string> seen;
    expect("{");
    if (peek_past_space() == '}') return expect("}", object);
    do {
      peek_past_space();
      const std::string key = read_string();
      if (!seen.insert(key).second) fail("the key " + Json::quoted(key) + " is there twice");
      peek_past_space();
      expect(":");
      object.members_.emplace_back(key, read_value(where + ": " + key, depth + 1));
    } while (is_comma('}'));
    return object;
  }

  Json read_array(const std::string& where, int depth) {
    Json array(Json::Kind::kArray);
    expect("[");
    if (peek_past_space() == ']') return expect("]", array);
    do {
      array.add(read_value(where, depth + 1));
    } while (is_comma(']'));
    return array;
  }

  bool is_comma(char end) {
    peek_past_space();
    const char c = next();
    if (c != ',' && c != end) fail(std::string("expected , or ") + end);
    return c == ',';
  }

  std::string read_string() {
    std::string out;
    expect("\"");
    for (char c = next(); c != '"'; c = next()) {
      if (static_cast<unsigned char>(c) < 0x20) fail("a control character in a text");
      out += c == '\\' ? read_escape() : std::string(1, c);
    }
    return out;
  }

  std::string read_escape() {
    static const std::string kEscapes = "\"\\/bfnrt", kMeanings = "\"\\/\b\f\n\r\t";
    const char c = next();
    const size_t plain = kEscapes.find(c);
    if (plain != std::string::npos) return std::string(1, kMeanings[plain]);
    if (c != 'u') fail("an unknown escape in a text");
    uint32_t code = read_hex();
    if (code >= 0xD800 && code < 0xE000) {
      const bool is_high = code < 0xDC00 && next() == '\\' && next() == 'u';
      const uint32_t low = is_high ? read_hex() : 0;
      if (low < 0xDC00 || low > 0xDFFF) fail("half a character in a text");
      code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
    }
    return utf8(code);
  }

  uint32_t read_hex() {
    uint32_t code = 0;
    for (int i = 0; i < 4; ++i) {
      const size_t digit = std::string("0123456789abcdef0123456789ABCDEF").find(next());
      if (digit == std::string::npos) fail("expected four hexadecimal digits");
      code = code * 16 + digit % 16;
    }
    return code;
  }

  static std::string utf8(uint32_t code) {
    if (code < 0x80) return std::string(1, static_cast<char>(code));
    std::string out;
    int shift = code < 0x800 ? 6 : code < 0x10000 ? 12 : 18;
    out += static_cast<char>((shift == 6 ? 0xC0 : shift == 12 ? 0xE0 : 0xF0) | code >> shift);
    while ((shift -= 6) >= 0) out += static_cast<char>(0x80 | (code >> shift & 63));
    return out;
  }

  size_t skip_digits() {
    const size_t before = at_;
    while (peek() >= '0' && peek() <= '9') ++at_;
    return at_ - before;
  }

  double read_number() {
    const size_t start = at_;
    at_ += peek() == '-';
    const bool leads_with_zero = peek() == '0';
    const size_t whole = skip_digits();
    bool fine = whole == 1 || (whole > 1 && !leads_with_zero);
    if (peek() == '.') ++at_, fine = skip_digits() > 0 && fine;
    if (peek() == 'e' || peek() == 'E') {
      ++at_;
      at_ += peek() == '+' || peek() == '-';
      fine = skip_digits() > 0 && fine;
    }
    if (!fine) fail("expected a value");
    const double value = std::strtod(text_.substr(start, at_ - start).c_str(), nullptr);
    if (!std::isfinite(value)) fail("a number is too large");
    return value;
  }

  const std::string& text_;
  std::string name_;
  size_t at_ = 0;
};

// ---- Files ---------------------------------------------------------------------------------------------------------

using Bytes = std::vector<uint8_t>;

Bytes read_file(const std::string& path, const std::string& name, size_t most) {
  std::ifstream file(path, std::ios::binary | std::ios::ate);
  require(file.good(), name + " cannot be read");
  const std::streamoff size = file.tellg();
  require(size >= 0 && static_cast<uint64_t>(size) <= most, name + " is too large");
  Bytes bytes(static_cast<size_t>(size));
  file.seekg(0);
  file.read(reinterpret_cast<char*>(bytes.data()), size);
  require(file.gcount() == size, name + " cannot be read to its end");
  return bytes;
}

// SHA-256, FIPS 180-4.
class Sha256 {
 public:
  void update(const uint8_t* data, size_t size) {
    total_ += size;
    while (size > 0) {
      const size_t part = std::min(size, block_.size() - filled_);
      std::memcpy(block_.data() + filled_, data, part);
      filled_ += part, data += part, size -= part;
      if (filled_ == block_.size()) compress(), filled_ = 0;
    }
  }

  std::string hex() {
    const uint64_t bits = total_ * 8;
    const uint8_t one = 0x80, zero = 0;
    update(&one, 1);
    while (filled_ != 56) update(&zero, 1);
    uint8_t length[8];
    for (int i = 0; i < 8; ++i) length[i] = static_cast<uint8_t>(bits >> (56 - 8 * i));
    update(length, 8);
    std::string out;
    for (const uint32_t word : state_) {
      char digits[9];
      std::snprintf(digits, sizeof digits, "%08x", word);
      out += digits;
    }
    return out;
  }

 private:
  static uint32_t rotate(uint32_t x, int by) { return x >> by | x << (32 - by); }

  void compress() {
    static constexpr uint32_t kRounds[64] = {
        0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4, 0xab1c5ed5,
        0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe, 0x9bdc06a7, 0xc19bf174,
        0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f, 0x4a7484aa, 0x5cb0a9dc, 0x76f988da,
        0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7, 0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967,
        0x27b70a85, 0x2e1b2138, 0x4d2c6dfc, 0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85,
        0xa2bfe8a1, 0xa81a664b, 0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070,
        0x19a4c116, 0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
        0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7, 0xc67178f2};
    uint32_t w[64];
    for (size_t i = 0; i < 16; ++i)
      w[i] = static_cast<uint32_t>(block_[4 * i]) << 24 | static_cast<uint32_t>(block_[4 * i + 1]) << 16 |
             static_cast<uint32_t>(block_[4 * i + 2]) << 8 | block_[4 * i + 3];
    for (size_t i = 16; i < 64; ++i) {
      const uint32_t s0 = rotate(w[i - 15], 7) ^ rotate(w[i - 15], 18) ^ w[i - 15] >> 3;
      const uint32_t s1 = rotate(w[i - 2], 17) ^ rotate(w[i - 2], 19) ^ w[i - 2] >> 10;
      w[i] = w[i - 16] + s0 + w[i - 7] + s1;
    }
    std::array<uint32_t, 8> v = state_;
    for (size_t i = 0; i < 64; ++i) {
      const uint32_t s1 = rotate(v[4], 6) ^ rotate(v[4], 11) ^ rotate(v[4], 25);
      const uint32_t t1 = v[7] + s1 + ((v[4] & v[5]) ^ (~v[4] & v[6])) + kRounds[i] + w[i];
      const uint32_t s0 = rotate(v[0], 2) ^ rotate(v[0], 13) ^ rotate(v[0], 22);
      const uint32_t t2 = s0 + ((v[0] & v[1]) ^ (v[0] & v[2]) ^ (v[1] & v[2]));
      v = {t1 + t2, v[0], v[1], v[2], v[3] + t1, v[4], v[5], v[6]};
    }
    for (size_t i = 0; i < 8; ++i) state_[i] += v[i];
  }

  std::array<uint32_t, 8> state_ = {0x6a09e667, 0xbb67ae85, 0x3c6ef372, 0xa54ff53a,
                                    0x510e527f, 0x9b05688c, 0x1f83d9ab, 0x5be0cd19};
  std::array<uint8_t, 64> block_{};
  size_t filled_ = 0;
  uint64_t total_ = 0;
};

std::string sha256_of(const std::string& path, const std::string& name) {
  std::ifstream file(path, std::ios::binary);
  require(file.good(), name + " cannot be read");
  Sha256 hash;
  Bytes part(1 << 16);
  while (file) {
    file.read(reinterpret_cast<char*>(part.data()), static_cast<std::streamsize>(part.size()));
    hash.update(part.data(), static_cast<size_t>(file.gcount()));
  }
  require(file.eof(), name + " cannot be read to its end");
  return hash.hex();
}

std::string sha256_of(const std::string& text) {
  Sha256 hash;
  hash.update(reinterpret_cast<const uint8_t*>(text.data()), text.size());
  return hash.hex();
}

// The names of what lies in `folder`, sorted.
std::vector<std::string> names_in(const std::string& folder) {
  const std::unique_ptr<DIR, int (*)(DIR*)> open(opendir(folder.c_str()), closedir);
  std::vector<std::string> names;
  if (!open) return names;
  while (const dirent* entry = readdir(open.get())) {
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names.push_back(name);
  }
  std::sort(names.begin(), names.end());
  return names;
}

enum class Sort { kNone, kFile, kFolder, kOther };

// What lies at `path`; a link is never followed.
Sort sort_of(const std::string& path, uint64_t* size = nullptr) {
  struct stat found {};
  if (lstat(path.c_str(), &found) != 0) return Sort::kNone;
  if (size) *size = static_cast<uint64_t>(found.st_size);
  return S_ISREG(found.st_mode) ? Sort::kFile : S_ISDIR(found.st_mode) ? Sort::kFolder : Sort::kOther;
}

// ---- Arrays --------------------------------------------------------------------------------------------------------

enum class Dtype { kBool, kU8, kI8, kU16, kI16, kF16, kU32, kI32, kF32, kU64, kI64, kF64 };

// How each dtype is spelled: by numpy's name, in a .npy header, in a safetensors header; and in each runtime.
struct DtypeFacts {
  Dtype dtype;
  const char* name;
  const char* npy;
  const char* safetensors;
  size_t size;
  int onnx;         // ONNXTensorElementDataType
  int litert;       // LiteRtElementType
  uint8_t dlpack;   // DLDataTypeCode
};

constexpr DtypeFacts kDtypes[] = {
    {Dtype::kBool, "bool", "|b1", "BOOL", 1, 9, 6, 6},    {Dtype::kU8, "uint8", "|u1", "U8", 1, 2, 3, 1},
    {Dtype::kI8, "int8", "|i1", "I8", 1, 3, 9, 0},        {Dtype::kU16, "uint16", "<u2", "U16", 2, 4, 17, 1},
    {Dtype::kI16, "int16", "<i2", "I16", 2, 5, 7, 0},     {Dtype::kF16, "float16", "<f2", "F16", 2, 10, 10, 2},
    {Dtype::kU32, "uint32", "<u4", "U32", 4, 12, 16, 1},  {Dtype::kI32, "int32", "<i4", "I32", 4, 6, 2, 0},
    {Dtype::kF32, "float32", "<f4", "F32", 4, 1, 1, 2},   {Dtype::kU64, "uint64", "<u8", "U64", 8, 13, 13, 1},
    {Dtype::kI64, "int64", "<i8", "I64", 8, 7, 4, 0},     {Dtype::kF64, "float64", "<f8", "F64", 8, 11, 11, 2},
};

const DtypeFacts& facts(Dtype dtype) { return kDtypes[static_cast<size_t>(dtype)]; }

template <typename Matches>
Dtype dtype_where(Matches matches, const std::string& otherwise) {
  for (const DtypeFacts& each : kDtypes)
    if (matches(each)) return each.dtype;
  throw Error(otherwise);
}

Dtype dtype_named(const std::string& name) {
  return dtype_where([&](const DtypeFacts& f) { return name == f.name; }, "this runner knows no dtype " + name);
}

bool is_float(Dtype dtype) { return dtype == Dtype::kF16 || dtype == Dtype::kF32 || dtype == Dtype::kF64; }

using Shape = std::vector<int64_t>;

std::string spell(const Shape& shape) {
  std::string out;
  for (const int64_t dim : shape) out += (out.empty() ? "" : ", ") + std::to_string(dim);
  return "[" + out + "]";
}

// Bytes that an array takes. Throws where that is more than a machine can have.
size_t bytes_of(Dtype dtype, const Shape& shape) {
  constexpr uint64_t kMost = std::min<uint64_t>(std::numeric_limits<size_t>::max() / 2, uint64_t{1} << 46);
  uint64_t total = facts(dtype).size;
  for (const int64_t dim : shape) {
    require(dim >= 0, "an array has a negative dimension");
    require(total <= kMost / std::max<uint64_t>(static_cast<uint64_t>(dim), 1), "an array is too large");
    total *= std::max<uint64_t>(static_cast<uint64_t>(dim), 1);
  }
  const bool empty = std::find(shape.begin(), shape.end(), 0) != shape.end();
  return empty ? 0 : static_cast<size_t>(total);
}

// Memory that starts at a multiple of 64 bytes, as the kernels of every runtime like it.
class Memory {
 public:
  Memory() = default;
  explicit Memory(size_t size) : size_(size) {
    void* start = nullptr;
    if (posix_memalign(&start, 64, std::max<size_t>(size, 64)) != 0) throw std::bad_alloc();
    start_.reset(static_cast<uint8_t*>(start));
  }

  uint8_t* data() const { return start_.get(); }
  size_t size() const { return size_; }

 private:
  struct Free {
    void operator()(uint8_t* start) const { std::free(start); }
  };
  std::unique_ptr<uint8_t, Free> start_;
  size_t size_ = 0;
};

// An array in row-major order.
struct Array {
  Dtype dtype = Dtype::kF32;
  Shape shape;
  Memory memory;

  Array() = default;
  Array(Dtype dtype_, Shape shape_) : dtype(dtype_), shape(std::move(shape_)), memory(bytes_of(dtype, shape)) {}
  Array(Dtype dtype_, Shape shape_, const void* source) : Array(dtype_, std::move(shape_)) {
    if (memory.size()) std::memcpy(memory.data(), source, memory.size());
  }

  size_t count() const { return memory.size() / facts(dtype).size; }

  template <typename T>
  T at(size_t index) const {
    T value;
    std::memcpy(&value, memory.data() + index * sizeof(T), sizeof(T));
    return value;
  }
};

using Arrays = std::vector<Array>;

constexpr const char* kUnknownOutput = "the model has a dtype that this runner lacks";

double from_half(uint16_t half) {
  const int exponent = half >> 10 & 31, fraction = half & 1023;
  const double sign = half & 0x8000 ? -1 : 1;
  if (exponent == 31)
    return fraction ? std::numeric_limits<double>::quiet_NaN() : sign * std::numeric_limits<double>::infinity();
  return sign * (exponent ? std::ldexp(1024 + fraction, exponent - 25) : std::ldexp(fraction, -24));
}

double float_at(const Array& array, size_t index) {
  switch (array.dtype) {
    case Dtype::kF16: return from_half(array.at<uint16_t>(index));
    case Dtype::kF32: return static_cast<double>(array.at<float>(index));
    default: return array.at<double>(index);
  }
}

int64_t integer_at(const Array& array, size_t index) {
  switch (array.dtype) {
    case Dtype::kBool: return array.at<uint8_t>(index) != 0;
    case Dtype::kU8: return array.at<uint8_t>(index);
    case Dtype::kI8: return array.at<int8_t>(index);
    case Dtype::kU16: return array.at<uint16_t>(index);
    case Dtype::kI16: return array.at<int16_t>(index);
    case Dtype::kU32: return array.at<uint32_t>(index);
    case Dtype::kI32: return array.at<int32_t>(index);
    default: return array.at<int64_t>(index);
  }
}

// `array` with another integer dtype; throws where a number does not fit.
Array with_dtype(const Array& array, Dtype dtype, const std::string& name) {
  if (array.dtype == dtype) return Array(dtype, array.shape, array.memory.data());
  require(!is_float(array.dtype) && !is_float(dtype), name + " is " + facts(array.dtype).name + " in the build and " +
                                                          facts(dtype).name + " in its signature");
  Array out(dtype, array.shape);
  for (size_t i = 0; i < array.count(); ++i) {
    const int64_t value = integer_at(array, i);
    // Every machine that this runs on is little-endian: the low bytes come first.
    std::memcpy(out.memory.data() + i * facts(dtype).size, &value, facts(dtype).size);
    require(integer_at(out, i) == value, name + " holds numbers that do not fit " + facts(dtype).name);
  }
  return out;
}

// How far `found` is from `want`: for floats the largest |found - want| as a share of the largest finite |want|, for
// anything else the share that differs. Infinity where shapes, dtypes, NaN or infinities differ.
double difference(const Array& want, const Array& found) {
  constexpr double kInfinity = std::numeric_limits<double>::infinity();
  if (want.shape != found.shape || want.dtype != found.dtype) return kInfinity;
  const size_t count = want.count();
  if (count == 0) return 0;
  if (!is_float(want.dtype)) {
    size_t differing = 0;
    for (size_t i = 0; i < count; ++i) differing += integer_at(want, i) != integer_at(found, i);
    return static_cast<double>(differing) / static_cast<double>(count);
  }
  double largest = 0, gap = 0;
  for (size_t i = 0; i < count; ++i) {
    const double a = float_at(want, i), b = float_at(found, i);
    if (std::isfinite(a)) {
      if (!std::isfinite(b)) return kInfinity;
      largest = std::max(largest, std::fabs(a));
      gap = std::max(gap, std::fabs(a - b));
    } else if (std::isnan(a) ? !std::isnan(b) : a != b) {
      return kInfinity;
    }
  }
  return largest > 0 ? gap / largest : gap;
}

// ---- golden.npz: a zip of .npy files -------------------------------------------------------------------------------

// DEFLATE, RFC 1951. Gives exactly `size` bytes or throws.
class Inflate {
 public:
  Inflate(const uint8_t* data, size_t length, size_t size) : data_(data), length_(length), size_(size) {}

  Bytes run() {
    // No code expands a byte more than this, so that a small file cannot ask for all memory.
    require(size_ / 1100 <= length_, "golden.npz is damaged: an entry says it is larger than it can be");
    out_.reserve(size_);
    for (bool last = false; !last;) {
      last = bits(1) == 1;
      switch (bits(2)) {
        case 0: stored(); break;
        case 1: fixed(); break;
        case 2: dynamic(); break;
        default: fail();
      }
    }
    if (out_.size() != size_) fail();
    return std::move(out_);
  }

 private:
  // A Huffman code by length: how many codes of each, and their symbols in order.
  struct Code {
    std::array<uint16_t, 16> counts{};
    std::array<uint16_t, 288> symbols{};
  };

  [[noreturn]] static void fail() { throw Error("golden.npz is damaged: an entry does not decompress"); }

  uint32_t bits(int need) {
    while (held_ < need) {
      if (at_ >= length_) fail();
      buffer_ |= static_cast<uint32_t>(data_[at_++]) << held_;
      held_ += 8;
    }
    const uint32_t value = buffer_ & ((1U << need) - 1);
    buffer_ >>= need;
    held_ -= need;
    return value;
  }

  void put(uint8_t byte) {
    if (out_.size() >= size_) fail();
    out_.push_back(byte);
  }

  void stored() {
    buffer_ = 0, held_ = 0;
    if (length_ - at_ < 4) fail();
    const uint32_t count = data_[at_] | static_cast<uint32_t>(data_[at_ + 1]) << 8;
    const uint32_t check = data_[at_ + 2] | static_cast<uint32_t>(data_[at_ + 3]) << 8;
    at_ += 4;
    if (count != (~check & 0xFFFF) || count > length_ - at_) fail();
    for (uint32_t i = 0; i < count; ++i) put(data_[at_++]);
  }

  static Code make(const uint8_t* lengths, size_t count) {
    Code code;
    for (size_t i = 0; i < count; ++i) ++code.counts[lengths[i]];
    code.counts[0] = 0;
    int left = 1;
    std::array<uint16_t, 16> starts{};
    for (size_t length = 1; length < 16; ++length) {
      left = 2 * left - code.counts[length];
      if (left < 0) fail();
      if (length < 15) starts[length + 1] = static_cast<uint16_t>(starts[length] + code.counts[length]);
    }
    for (size_t i = 0; i < count; ++i)
      if (lengths[i]) code.symbols[starts[lengths[i]]++] = static_cast<uint16_t>(i);
    return code;
  }

  uint16_t symbol(const Code& code) {
    int value = 0, first = 0, index = 0;
    for (size_t length = 1; length < 16; ++length) {
      value |= static_cast<int>(bits(1));
      const int count = code.counts[length];
      if (value - count < first) return code.symbols[static_cast<size_t>(index + value - first)];
      index += count;
      first = (first + count) << 1;
      value <<= 1;
    }
    fail();
  }

  void codes(const Code& literals, const Code& distances) {
    static constexpr uint16_t kLength[29] = {3,  4,  5,  6,  7,  8,  9,  10, 11,  13,  15,  17,  19,  23, 27,
                                             31, 35, 43, 51, 59, 67, 83, 99, 115, 131, 163, 195, 227, 258};
    static constexpr uint8_t kLengthBits[29] = {0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2,
                                                2, 3, 3, 3, 3, 4, 4, 4, 4, 5, 5, 5, 5, 0};
    static constexpr uint16_t kDistance[30] = {1,   2,   3,   4,   5,   7,    9,    13,   17,   25,
                                               33,  49,  65,  97,  129, 193,  257,  385,  513,  769,
                                               1025, 1537, 2049, 3073, 4097, 6145, 8193, 12289, 16385, 24577};
    static constexpr uint8_t kDistanceBits[30] = {0, 0, 0, 0, 1, 1, 2, 2,  3,  3,  4,  4,  5,  5,  6,
                                                  6, 7, 7, 8, 8, 9, 9, 10, 10, 11, 11, 12, 12, 13, 13};
    for (uint16_t found = symbol(literals); found != 256; found = symbol(literals)) {
      if (found < 256) {
        put(static_cast<uint8_t>(found));
        continue;
      }
      if (found > 285) fail();
      const size_t length = kLength[found - 257] + bits(kLengthBits[found - 257]);
      const uint16_t far = symbol(distances);
      if (far > 29) fail();
      const size_t distance = kDistance[far] + bits(kDistanceBits[far]);
      if (distance > out_.size()) fail();
      for (size_t i = 0; i < length; ++i) put(out_[out_.size() - distance]);
    }
  }

  void fixed() {
    std::array<uint8_t, 288> literals{};
    std::array<uint8_t, 30> distances{};
    for (size_t i = 0; i < 288; ++i) literals[i] = static_cast<uint8_t>(i < 144 ? 8 : i < 256 ? 9 : i < 280 ? 7 : 8);
    distances.fill(5);
    codes(make(literals.data(), 288), make(distances.data(), 30));
  }

  void dynamic() {
    static constexpr uint8_t kOrder[19] = {16, 17, 18, 0, 8, 7, 9, 6, 10, 5, 11, 4, 12, 3, 13, 2, 14, 1, 15};
    const size_t literals = bits(5) + 257, distances = bits(5) + 1, used = bits(4) + 4;
    if (literals > 286 || distances > 30) fail();
    std::array<uint8_t, 19> short_lengths{};
    for (size_t i = 0; i < used; ++i) short_lengths[kOrder[i]] = static_cast<uint8_t>(bits(3));
    const Code code = make(short_lengths.data(), short_lengths.size());
    std::array<uint8_t, 286 + 30> lengths{};
    for (size_t at = 0; at < literals + distances;) {
      const uint16_t found = symbol(code);
      if (found < 16) {
        lengths[at++] = static_cast<uint8_t>(found);
        continue;
      }
      if (found == 16 && at == 0) fail();
      const uint8_t again = found == 16 ? lengths[at - 1] : uint8_t{0};
      const size_t times = found == 16 ? 3 + bits(2) : found == 17 ? 3 + bits(3) : 11 + bits(7);
      if (at + times > literals + distances) fail();
      for (size_t i = 0; i < times; ++i) lengths[at++] = again;
    }
    codes(make(lengths.data(), literals), make(lengths.data() + literals, distances));
  }

  const uint8_t* data_;
  size_t length_, size_;
  size_t at_ = 0;
  uint32_t buffer_ = 0;
  int held_ = 0;
  Bytes out_;
};

// The arrays of golden.npz, read one at a time.
class Npz {
 public:
  explicit Npz(Bytes bytes) : bytes_(std::move(bytes)) {
    require(bytes_.size() >= 22, "golden.npz is damaged: it is no zip");
    size_t end = bytes_.size() - 22;
    while (end > 0 && little(end, 4) != 0x06054b50) --end;
    require(little(end, 4) == 0x06054b50, "golden.npz is damaged: it is no zip");
    const uint64_t entries = little(end + 10, 2);
    uint64_t at = little(end + 16, 4);
    for (uint64_t i = 0; i < entries; ++i) at = entry(at);
  }

  Array read(const std::string& name) const {
    const auto found = entries_.find(name);
    require(found != entries_.end(), "golden.npz lacks " + name);
    return parse(contents(found->second), name);
  }

 private:
  struct Entry {
    uint64_t method, packed, size, local;
  };

  uint64_t little(uint64_t at, size_t count) const {
    require(at <= bytes_.size() && count <= bytes_.size() - at, "golden.npz is damaged: it points outside of itself");
    uint64_t value = 0;
    for (size_t i = 0; i < count; ++i) value |= static_cast<uint64_t>(bytes_[at + i]) << 8 * i;
    return value;
  }

  uint64_t entry(uint64_t at) {
    require(little(at, 4) == 0x02014b50, "golden.npz is damaged: its list of entries is broken");
    const Entry found{little(at + 10, 2), little(at + 20, 4), little(at + 24, 4), little(at + 42, 4)};
    const uint64_t length = little(at + 28, 2), rest = little(at + 30, 2) + little(at + 32, 2);
    if (length) little(at + 46 + length - 1, 1);
    std::string name(bytes_.begin() + static_cast<std::ptrdiff_t>(at + 46),
                     bytes_.begin() + static_cast<std::ptrdiff_t>(at + 46 + length));
    const std::string suffix = ".npy";
    require(name.size() > suffix.size() && name.compare(name.size() - 4, 4, suffix) == 0,
            "golden.npz is damaged: it holds more than arrays");
    name.resize(name.size() - suffix.size());
    require(entries_.emplace(name, found).second, "golden.npz is damaged: it has " + name + " twice");
    return at + 46 + length + rest;
  }

  Bytes contents(const Entry& entry) const {
    require(little(entry.local, 4) == 0x04034b50, "golden.npz is damaged: an entry has no header");
    const uint64_t start = entry.local + 30 + little(entry.local + 26, 2) + little(entry.local + 28, 2);
    require(start <= bytes_.size() && entry.packed <= bytes_.size() - start, "golden.npz is damaged: it is cut short");
    const uint8_t* data = bytes_.data() + start;
    if (entry.method == 8) return Inflate(data, entry.packed, entry.size).run();
    require(entry.method == 0 && entry.packed == entry.size, "golden.npz is packed in a way that this runner lacks");
    return Bytes(data, data + entry.size);
  }

  static Array parse(const Bytes& bytes, const std::string& name) {
    const std::string damaged = "golden.npz is damaged: " + name + " is no array";
    require(bytes.size() >= 12 && std::memcmp(bytes.data(), "\x93NUMPY", 6) == 0, damaged);
    const bool wide = bytes[6] > 1;
    size_t length = bytes[8] | static_cast<size_t>(bytes[9]) << 8;
    if (wide) length |= static_cast<size_t>(bytes[10]) << 16 | static_cast<size_t>(bytes[11]) << 24;
    const size_t start = wide ? 12 : 10;
    require(length <= bytes.size() - start, damaged);
    const std::string header(bytes.begin() + static_cast<std::ptrdiff_t>(start),
                             bytes.begin() + static_cast<std::ptrdiff_t>(start + length));
    const std::string descr = between(header, "'descr': '", "'", damaged);
    const Dtype dtype = dtype_where([&](const DtypeFacts& f) { return descr == f.npy; },
                                    "golden.npz: " + name + " has the dtype " + descr + ", which this runner lacks");
    const bool fortran = between(header, "'fortran_order': ", ",", damaged) == "True";
    const Shape shape = dimensions(between(header, "'shape': (", ")", damaged), damaged);
    require(bytes_of(dtype, shape) == bytes.size() - start - length, damaged);
    const uint8_t* data = bytes.data() + start + length;
    return fortran ? from_columns(dtype, shape, data) : Array(dtype, shape, data);
  }

  static std::string between(const std::string& text, const std::string& left, const std::string& right,
                             const std::string& otherwise) {
    const size_t at = text.find(left);
    require(at != std::string::npos, otherwise);
    const size_t from = at + left.size(), to = text.find(right, from);
    require(to != std::string::npos, otherwise);
    return text.substr(from, to - from);
  }

  static Shape dimensions(const std::string& text, const std::string& otherwise) {
    Shape shape;
    int64_t value = -1;
    for (const char c : text + ",") {
      if (c >= '0' && c <= '9') {
        value = std::max<int64_t>(value, 0) * 10 + (c - '0');
        require(value < int64_t{1} << 40, otherwise);
      } else if (c == ',') {
        if (value >= 0) shape.push_back(value);
        value = -1;
      } else {
        require(c == ' ', otherwise);
      }
    }
    require(shape.size() <= 32, otherwise);
    return shape;
  }

  // Numpy keeps an array whose columns lie in a row as it is.
  static Array from_columns(Dtype dtype, const Shape& shape, const uint8_t* data) {
    Array out(dtype, shape);
    const size_t size = facts(dtype).size;
    Shape index(shape.size(), 0);
    for (size_t i = 0; i < out.count(); ++i) {
      size_t at = 0, stride = 1;
      for (size_t axis = 0; axis < shape.size(); ++axis) {
        at += static_cast<size_t>(index[axis]) * stride;
        stride *= static_cast<size_t>(shape[axis]);
      }
      std::memcpy(out.memory.data() + i * size, data + at * size, size);
      for (size_t axis = shape.size(); axis-- > 0 && ++index[axis] == shape[axis];) index[axis] = 0;
    }
    return out;
  }

  Bytes bytes_;
  std::map<std::string, Entry> entries_;
};

// ---- The build -----------------------------------------------------------------------------------------------------

struct Port {
  std::string name;
  Dtype dtype;
};

struct Build {
  std::string folder;
  Json manifest;
  std::vector<Port> inputs, outputs;
  size_t samples = 0;
  double tolerance = 0;

  const Json& runtime() const { return manifest["runtime"]; }

  // The path of a file that the manifest names, and thus vouches for.
  std::string file(const char* key) const {
    const std::string& name = runtime()[key].text();
    require(manifest["files"].find(name) != nullptr, name + " is what would be run, and not in the manifest");
    return folder + "/" + name;
  }
};

// Whether `name` is a path that cannot leave the folder that it is relative to.
bool stays_inside(const std::string& name) {
  size_t start = 0;
  while (true) {
    const size_t slash = name.find('/', start);
    const std::string part = name.substr(start, slash == std::string::npos ? slash : slash - start);
    if (part.empty() || part == "." || part == ".." || part.find('\0') != std::string::npos) return false;
    if (slash == std::string::npos) return true;
    start = slash + 1;
  }
}

void check_file(const Build& build, const std::string& name, const Json& want) {
  require(stays_inside(name), name + ": a path that leaves the build");
  for (size_t slash = name.find('/'); slash != std::string::npos; slash = name.find('/', slash + 1))
    require(sort_of(build.folder + "/" + name.substr(0, slash)) == Sort::kFolder, name + ": missing, or behind a link");
  const std::string path = build.folder + "/" + name;
  uint64_t size = 0;
  const Sort sort = sort_of(path, &size);
  require(sort != Sort::kNone, name + ": missing");
  require(sort == Sort::kFile, name + ": a link, or no plain file");
  require(size == want["bytes"].count(), name + ": changed: its size is not the manifest's");
  require(sha256_of(path, name) == want["sha256"].text(), name + ": changed: its sha256 is not the manifest's");
}

// Refuse what lies in the build and is not in its manifest. Folders that running a build makes are let be.
void check_nothing_added(const Build& build, const std::string& inside) {
  for (const std::string& each : names_in(build.folder + "/" + inside)) {
    if (each == "__pycache__" || each == "node_modules") continue;
    const std::string name = inside + each;
    if (sort_of(build.folder + "/" + name) == Sort::kFolder) {
      check_nothing_added(build, name + "/");
    } else {
      require(name == "manifest.json" || build.manifest["files"].find(name), name + ": not in the manifest");
    }
  }
}

std::vector<Port> ports(const Json& listed) {
  std::vector<Port> found;
  for (const Json& port : listed.items()) found.push_back({port["name"].text(), dtype_named(port["dtype"].text())});
  return found;
}

// Hold a manifest against its own seal: its last key is the sha256 of all the text before it.
void check_seal(const std::string& text) {
  const std::string mark = ",\n  \"seal\": \"";
  const size_t end = text.rfind(mark);
  require(end != std::string::npos && text.substr(end) == mark + sha256_of(text.substr(0, end)) + "\"\n}\n",
          "manifest.json: changed: its seal is not the sha256 of what it says");
}

// Read the manifest of the build in `folder` and hold every file against it.
Build open_build(const std::string& folder) {
  Build build;
  build.folder = folder;
  require(sort_of(folder + "/manifest.json") == Sort::kFile, folder + " is no build: it has no manifest.json");
  const Bytes bytes = read_file(folder + "/manifest.json", "manifest.json", size_t{256} << 20);
  const std::string text(bytes.begin(), bytes.end());
  build.manifest = JsonReader(text, "manifest.json").read();
  const int64_t schema = build.manifest["schema"].integer();
  require(schema == kSchema, "manifest.json has schema " + std::to_string(schema) + "; this runner reads schema " +
                                 std::to_string(kSchema));
  check_seal(text);
  for (const auto& file : build.manifest["files"].members()) check_file(build, file.first, file.second);
  check_nothing_added(build, "");
  build.inputs = ports(build.manifest["signature"]["inputs"]);
  build.outputs = ports(build.manifest["signature"]["outputs"]);
  build.samples = build.manifest["golden"]["n"].count();
  build.tolerance = build.manifest["golden"]["tolerance"].number();
  require(build.samples == 0 || build.manifest["files"].find("golden.npz"), "golden.npz: not in the manifest");
  return build;
}

// ---- Runtimes ------------------------------------------------------------------------------------------------------

struct Options {
  std::string build;
  int runs = kDefaultRuns;
  int threads = 0;
  bool golden = true;
  std::vector<std::string> libraries;
};

// A shared library, loaded for as long as the program runs: runtimes do not bear being unloaded.
class Library {
 public:
  // Load the library `stem` (libonnxruntime): from the places that the user names, beside this program, or from where
  // the system looks. Null where it is nowhere and is not `needed`.
  static std::unique_ptr<Library> open(const std::string& stem, const Options& options, bool needed = true) {
    std::vector<std::string> tried;
    for (const std::string& place : options.libraries) add_matches(place, stem, tried);
    add_matches(own_folder(), stem, tried);
    tried.push_back(stem + kSuffix);
    std::string why;
    for (const std::string& path : tried) {
      if (void* handle = dlopen(path.c_str(), RTLD_NOW | RTLD_GLOBAL))
        return std::unique_ptr<Library>(new Library(handle, path));
      why = dlerror();
    }
    const std::string mend = ": give its folder with --lib, or lay it beside this program";
    require(!needed, "no " + stem + kSuffix + mend + " (" + why + ")");
    return nullptr;
  }

  // The function `name`, as a pointer of the type of `function`.
  template <typename Function>
  void bind(Function*& function, const char* name) const {
    void* symbol = dlsym(handle_, name);
    require(symbol != nullptr, path_ + " has no " + name);
    std::memcpy(&function, &symbol, sizeof symbol);  // ISO C++ knows no cast from data to code; POSIX has this one work
  }

  const std::string& path() const { return path_; }

 private:
#if defined(__APPLE__)
  static constexpr const char* kSuffix = ".dylib";
#else
  static constexpr const char* kSuffix = ".so";
#endif

  Library(void* handle, std::string path) : handle_(handle), path_(std::move(path)) {}

  // A place is a folder, in which any version of the library is taken, or the library itself.
  static void add_matches(const std::string& place, const std::string& stem, std::vector<std::string>& paths) {
    struct stat found {};
    if (stat(place.c_str(), &found) != 0) return;
    if (!S_ISDIR(found.st_mode)) {
      const std::string name = place.substr(place.rfind('/') + 1);
      if (name.compare(0, stem.size() + 1, stem + ".") == 0) paths.push_back(place);
      return;
    }
    for (const std::string& name : names_in(place))
      if (name.compare(0, stem.size() + 1, stem + ".") == 0) paths.push_back(place + "/" + name);
  }

  static std::string own_folder() {
    std::array<char, 4096> path{};
    const ssize_t size = readlink("/proc/self/exe", path.data(), path.size() - 1);
    const std::string name(path.data(), size > 0 ? static_cast<size_t>(size) : 0);
    return name.substr(0, name.rfind('/'));
  }

  void* handle_;
  std::string path_;
};

// The kind of CPU that this program is made for, in the manifest's spelling: what it loads has to be for the same. The
// system would name the machine, which may be wider than the process.
std::string machine_name() {
#if defined(__aarch64__)
  return "aarch64";
#elif defined(__x86_64__)
  return "x86_64";
#elif defined(__arm__)
  return "armv7a";
#else
  utsname names{};
  uname(&names);
  return names.machine;
#endif
}

std::string system_name() {
  utsname names{};
  uname(&names);
  return names.sysname;
}

// A build that is open. Inputs and outputs are in the order of the signature.
class Runtime {
 public:
  virtual ~Runtime() = default;
  virtual void set_inputs(const Arrays& inputs) = 0;
  virtual void invoke() = 0;
  virtual Arrays outputs() = 0;

  // Whether the build is made for one row: samples of more go row by row.
  virtual bool by_row() const { return false; }

  std::string version;  // empty where the runtime does not tell
  std::string library;
  Json left_out{Json::Kind::kArray};  // what the build would rather run on, and this program has not
};

// What a runtime made, and the function that takes it back.
using Handle = std::unique_ptr<void, void (*)(void*)>;

// onnxruntime's C interface is one table of functions, to which each release adds at the end.
class OnnxRuntime : public Runtime {
 public:
  OnnxRuntime(const Build& build, const Options& options) {
    const auto lib = Library::open("libonnxruntime", options);
    struct Base {
      void** (*api)(uint32_t);
      const char* (*version)();
    };
    const Base* (*base)() = nullptr;
    lib->bind(base, "OrtGetApiBase");
    library = lib->path();
    version = base()->version();
    api_ = base()->api(kApi);
    require(api_ != nullptr, "onnxruntime " + version + " is too old");

    const Json& facts = build.runtime();
    environment_ = make(kReleaseEnv, kCreateEnv, kFatal, "polycast");
    const Handle settings = make(kReleaseSessionOptions, kCreateSessionOptions);
    call(kSetSessionLogSeverityLevel, settings.get(), kFatal);
    call(kSetSessionGraphOptimizationLevel, settings.get(), level(facts));
    call(kSetIntraOpNumThreads, settings.get(), options.threads);
    call(kSetInterOpNumThreads, settings.get(), 1);
    for (const char* group : {"session", "own_process"}) {
      const Json* entries = facts.find(group);
      if (!entries) continue;
      for (const auto& entry : entries->members())
        call(kAddSessionConfigEntry, settings.get(), entry.first.c_str(), entry.second.text().c_str());
    }
    if (const Json* providers = facts.find("providers"))
      for (const auto& provider : providers->members()) left_out.add(provider.first);
    session_ = make(kReleaseSession, kCreateSession, environment_.get(), build.file("model").c_str(), settings.get());
    memory_ = make(kReleaseMemoryInfo, kCreateCpuMemoryInfo, kArenaAllocator, kDefaultMemory);
    for (const Port& port : build.inputs) input_names_.push_back(port.name.c_str());
    for (const Port& port : build.outputs) output_names_.push_back(port.name.c_str());
  }

  void set_inputs(const Arrays& inputs) override {
    values_.clear();
    for (const Array& array : inputs)
      values_.push_back(make(kReleaseValue, kCreateTensorWithDataAsOrtValue, memory_.get(),
                             static_cast<void*>(array.memory.data()), array.memory.size(), array.shape.data(),
                             array.shape.size(), facts(array.dtype).onnx));
  }

  void invoke() override {
    std::vector<void*> given, made(output_names_.size(), nullptr);
    for (const Handle& value : values_) given.push_back(value.get());
    results_.clear();
    call(kRun, session_.get(), static_cast<void*>(nullptr), input_names_.data(), given.data(), given.size(),
         output_names_.data(), output_names_.size(), made.data());
    for (void* result : made) results_.push_back(own(result, kReleaseValue));
  }

  Arrays outputs() override {
    Arrays found;
    for (const Handle& result : results_) {
      const Handle info = make(kReleaseTensorTypeAndShapeInfo, kGetTensorTypeAndShape, result.get());
      int type = 0;
      size_t rank = 0;
      void* data = nullptr;
      call(kGetTensorElementType, info.get(), &type);
      call(kGetDimensionsCount, info.get(), &rank);
      Shape shape(rank);
      call(kGetDimensions, info.get(), shape.data(), rank);
      call(kGetTensorMutableData, result.get(), &data);
      found.emplace_back(dtype_where([&](const DtypeFacts& f) { return type == f.onnx; }, kUnknownOutput), shape, data);
    }
    return found;
  }

 private:
  // Places in OrtApi, as onnxruntime_c_api.h of version 5 and of every later one lists them.
  enum Place : size_t {
    kGetErrorMessage = 2, kCreateEnv = 3, kCreateSession = 7, kRun = 9, kCreateSessionOptions = 10,
    kSetSessionLogSeverityLevel = 22, kSetSessionGraphOptimizationLevel = 23, kSetIntraOpNumThreads = 24,
    kSetInterOpNumThreads = 25, kCreateTensorWithDataAsOrtValue = 49, kGetTensorMutableData = 51,
    kGetTensorElementType = 60, kGetDimensionsCount = 61, kGetDimensions = 62, kGetTensorTypeAndShape = 65,
    kCreateCpuMemoryInfo = 69, kReleaseEnv = 92, kReleaseStatus = 93, kReleaseMemoryInfo = 94, kReleaseSession = 95,
    kReleaseValue = 96, kReleaseTensorTypeAndShapeInfo = 99, kReleaseSessionOptions = 100,
    kAddSessionConfigEntry = 130,
  };
  static constexpr uint32_t kApi = 5;
  static constexpr int kFatal = 4, kArenaAllocator = 1, kDefaultMemory = 0;

  template <typename Function>
  Function* at(Place place) const {
    Function* function = nullptr;
    std::memcpy(&function, &api_[place], sizeof function);
    return function;
  }

  Handle own(void* made, Place release) const { return Handle(made, at<void(void*)>(release)); }

  // Call a function that gives a status: null, or what went wrong. The arguments have the types of its parameters.
  template <typename... Arguments>
  void call(Place place, Arguments... arguments) const {
    const Handle status = own(at<void*(Arguments...)>(place)(arguments...), kReleaseStatus);
    if (status) throw Error(std::string("onnxruntime: ") + at<const char*(void*)>(kGetErrorMessage)(status.get()));
  }

  // Call a function whose last parameter takes what it makes.
  template <typename... Arguments>
  Handle make(Place release, Place place, Arguments... arguments) const {
    void* made = nullptr;
    call(place, arguments..., &made);
    return own(made, release);
  }

  static int level(const Json& facts) {
    static const std::map<std::string, int> kLevels = {
        {"ORT_DISABLE_ALL", 0}, {"ORT_ENABLE_BASIC", 1}, {"ORT_ENABLE_EXTENDED", 2}, {"ORT_ENABLE_ALL", 99}};
    const std::string& name = facts["graph_optimization_level"].text();
    const auto found = kLevels.find(name);
    require(found != kLevels.end(), "manifest.json: unknown graph_optimization_level " + name);
    return found->second;
  }

  void** api_ = nullptr;
  Handle environment_{nullptr, nullptr}, session_{nullptr, nullptr}, memory_{nullptr, nullptr};
  std::vector<const char*> input_names_, output_names_;
  std::vector<Handle> values_, results_;
};

// What a library that does not tell its version is of: the name of its wheel's other folder, where it lies in a wheel.
std::string wheel_version(const std::string& library) {
  const std::string folder = library.substr(0, library.rfind('/')), beside = folder.substr(0, folder.rfind('/'));
  const std::string start = folder.substr(folder.rfind('/') + 1) + "-", end = ".dist-info";
  for (const std::string& name : names_in(beside))
    if (name.size() > start.size() + end.size() && name.compare(0, start.size(), start) == 0 &&
        name.compare(name.size() - end.size(), end.size(), end) == 0)
      return name.substr(start.size(), name.size() - start.size() - end.size());
  return "";
}

// LiteRT 2, through the C interface of libLiteRt. XNNPACK runs what it can.
class LiteRt : public Runtime {
 public:
  LiteRt(const Build& build, const Options& options) : build_(build), lib_(Library::open("libLiteRt", options)) {
    library = lib_->path();
    version = wheel_version(library);
    const EnvironmentOption only[] = {{kRegisterAccelerators, kInteger, kCpu}, {kLeastLogged, kInteger, kErrors}};
    environment_ = make("LiteRtDestroyEnvironment", "LiteRtCreateEnvironment", 2, &only[0]);
    const std::string path = build.file("model");
    model_ = make("LiteRtDestroyModel", "LiteRtCreateModelFromFile", environment_.get(), path.c_str());
    const Handle settings = make("LiteRtDestroyOptions", "LiteRtCreateOptions");
    call("LiteRtSetOptionsHardwareAccelerators", settings.get(), kCpu);
    char* text = strdup(("num_threads = " + std::to_string(options.threads) + "\n").c_str());
    void *cpu = nullptr, *signature = nullptr;
    call("LiteRtCreateOpaqueOptions", "xnnpack", static_cast<void*>(text), &std::free, &cpu);
    call("LiteRtAddOpaqueOptions", settings.get(), cpu);
    compiled_ = make("LiteRtDestroyCompiledModel", "LiteRtCreateCompiledModel", environment_.get(), model_.get(),
                     settings.get());
    call("LiteRtGetModelSignature", model_.get(), size_t{0}, &signature);
    inputs_ = match(build.inputs, signature, "Input");
    outputs_ = match(build.outputs, signature, "Output");
    lib_->bind(run_, "LiteRtRunCompiledModel");
  }

  bool by_row() const override { return build_.runtime()["by_row"].truth(); }

  void set_inputs(const Arrays& inputs) override {
    for (size_t i = 0; i < inputs.size(); ++i) fit(inputs_[i], inputs[i].shape);
    for (size_t i = 0; i < inputs.size(); ++i) {
      const Array narrow = with_dtype(inputs[i], inputs_[i].dtype, "input " + build_.inputs[i].name);
      make_buffer(inputs_[i], narrow.shape);
      with_memory(inputs_[i], kWrite, [&](void* start) {
        if (narrow.memory.size()) std::memcpy(start, narrow.memory.data(), narrow.memory.size());
      });
    }
    std::vector<Layout> layouts(outputs_.size());
    call("LiteRtGetCompiledModelOutputTensorLayouts", compiled_.get(), size_t{0}, layouts.size(), layouts.data(), true);
    for (Tensor& output : outputs_) make_buffer(output, shape_of(layouts[output.place]));
    given_ = in_order(inputs_);
    taken_ = in_order(outputs_);
  }

  void invoke() override {
    check(run_(compiled_.get(), 0, given_.size(), given_.data(), taken_.size(), taken_.data()), "a run");
  }

  Arrays outputs() override {
    Arrays found;
    for (const Tensor& output : outputs_)
      with_memory(output, kRead, [&](void* start) { found.emplace_back(output.dtype, output.shape, start); });
    return found;
  }

 private:
  static constexpr int kCpu = 1, kHostMemory = 1, kRead = 0, kWrite = 1, kInteger = 2, kErrors = 3;
  static constexpr int kRegisterAccelerators = 24, kLeastLogged = 25;

  struct EnvironmentOption {
    int tag;
    alignas(8) int type;
    int64_t value;
  };
  struct Layout {
    uint32_t rank : 7, has_strides : 1;
    int32_t dimensions[8];
    uint32_t strides[8];
  };
  struct TensorType {
    int element;
    Layout layout;
  };
  // One input or output: where it stands in the model's signature, and the buffer that holds it now.
  struct Tensor {
    size_t place = 0;
    Dtype dtype = Dtype::kF32;
    Shape shape;
    Handle buffer{nullptr, nullptr};
  };

  static void check(int status, const std::string& what) {
    if (status != 0) throw Error("LiteRT: " + what + " failed with status " + std::to_string(status));
  }

  // Call a function that gives a status. The arguments have the types of its parameters.
  template <typename... Arguments>
  void call(const std::string& name, Arguments... arguments) const {
    int (*function)(Arguments...) = nullptr;
    lib_->bind(function, name.c_str());
    check(function(arguments...), name);
  }

  // Call a function whose last parameter takes what it makes.
  template <typename... Arguments>
  Handle make(const char* release, const char* name, Arguments... arguments) const {
    void* made = nullptr;
    call(name, arguments..., &made);
    void (*function)(void*) = nullptr;
    lib_->bind(function, release);
    return Handle(made, function);
  }

  // Find each port among the inputs or outputs of the model's signature, by name.
  std::vector<Tensor> match(const std::vector<Port>& ports, void* signature, const std::string& kind) const {
    size_t count = 0;
    call("LiteRtGetNumSignature" + kind + "s", signature, &count);
    require(count == ports.size(), "the model has another number of " + kind + "s than the manifest");
    std::vector<Tensor> found(count);
    for (size_t place = 0; place < count; ++place) {
      const char* name = nullptr;
      void* tensor = nullptr;
      TensorType type{};
      call("LiteRtGetSignature" + kind + "Name", signature, place, &name);
      call("LiteRtGetSignature" + kind + "TensorByIndex", signature, place, &tensor);
      call("LiteRtGetRankedTensorType", tensor, &type);
      const auto port = std::find_if(ports.begin(), ports.end(), [&](const Port& each) { return each.name == name; });
      require(port != ports.end(), "the manifest has no " + kind + " " + name);
      Tensor& made = found[static_cast<size_t>(port - ports.begin())];
      made.place = place;
      made.dtype = dtype_where([&](const DtypeFacts& f) { return type.element == f.litert; }, kUnknownOutput);
    }
    return found;
  }

  static Shape shape_of(const Layout& layout) {
    return Shape(layout.dimensions, layout.dimensions + std::min<size_t>(layout.rank, 8));
  }

  // Have the model take an input of this shape.
  void fit(const Tensor& input, const Shape& shape) const {
    Layout now{};
    call("LiteRtGetCompiledModelInputTensorLayout", compiled_.get(), size_t{0}, input.place, &now);
    if (shape_of(now) == shape) return;
    const std::vector<int> dims(shape.begin(), shape.end());
    call("LiteRtCompiledModelResizeInputTensor", compiled_.get(), size_t{0}, input.place, dims.data(), dims.size());
  }

  void make_buffer(Tensor& tensor, const Shape& shape) const {
    if (tensor.buffer && tensor.shape == shape) return;
    require(shape.size() <= 8, "LiteRT has tensors of at most 8 dimensions");
    TensorType type{facts(tensor.dtype).litert, {}};
    type.layout.rank = static_cast<uint32_t>(shape.size()) & 127;
    for (size_t axis = 0; axis < shape.size(); ++axis) type.layout.dimensions[axis] = static_cast<int32_t>(shape[axis]);
    tensor.shape = shape;
    tensor.buffer = make("LiteRtDestroyTensorBuffer", "LiteRtCreateManagedTensorBuffer", environment_.get(),
                         kHostMemory, &type, bytes_of(tensor.dtype, shape));
  }

  template <typename Use>
  void with_memory(const Tensor& tensor, int mode, Use use) const {
    void* start = nullptr;
    call("LiteRtLockTensorBuffer", tensor.buffer.get(), &start, mode);
    use(start);
    call("LiteRtUnlockTensorBuffer", tensor.buffer.get());
  }

  static std::vector<void*> in_order(const std::vector<Tensor>& tensors) {
    std::vector<void*> buffers(tensors.size());
    for (const Tensor& tensor : tensors) buffers[tensor.place] = tensor.buffer.get();
    return buffers;
  }

  const Build& build_;
  std::unique_ptr<Library> lib_;
  int (*run_)(void*, size_t, size_t, void**, size_t, void**) = nullptr;
  Handle environment_{nullptr, nullptr}, model_{nullptr, nullptr}, compiled_{nullptr, nullptr};
  std::vector<Tensor> inputs_, outputs_;
  std::vector<void*> given_, taken_;
};

// TVM: a library of kernels with bytecode for its virtual machine, and weights that the caller hands in.
class Tvm : public Runtime {
 public:
  Tvm(const Build& build, const Options& options) : build_(build) {
    const Json& runtime = build.runtime();
    require(runtime["device"].text() == "cpu", "this runner has no " + runtime["device"].text() + " device");
    check_machine(runtime);
    setenv("TVM_NUM_THREADS", std::to_string(options.threads).c_str(), 1);
    setenv("TVM_BIND_THREADS", "0", 0);
    const auto ffi = Library::open("libtvm_ffi", options);
    const auto lib = Library::open("libtvm_runtime", options);
    Library::open("libtvm_runtime_extra", options, false);
    library = lib->path();
    version = version_of(*ffi);
    ffi->bind(get_global_, "TVMFFIFunctionGetGlobal");
    ffi->bind(function_call_, "TVMFFIFunctionCall");
    ffi->bind(raised_, "TVMFFIErrorMoveFromRaised");
    ffi->bind(from_dlpack_, "TVMFFITensorFromDLPack");
    ffi->bind(release_, "TVMFFIObjectDecRef");

    const std::string path = build.file("library");
    const Value module = call(global("ffi.ModuleLoadFromFile"), {Any(path.c_str())});
    machine_ = call(function(module, "vm_load_executable"), {});
    call(function(machine_, "vm_initialization"), {Any(kCpu), Any(0), Any(kPooledAllocator)});
    main_ = function(machine_, "main");
    for (const Port& port : build.inputs) {
      const Json& inside = runtime["inside"][port.name];
      hand_in(Array(dtype_named(inside["dtype"].text()), integers(inside["shape"])));
    }
    if (!runtime["parameters"].items().empty()) load_weights(runtime);
  }

  bool by_row() const override { return build_.runtime()["by_row"].truth(); }

  void set_inputs(const Arrays& inputs) override {
    for (size_t i = 0; i < inputs.size(); ++i) {
      const std::string name = "input " + build_.inputs[i].name;
      require(inputs[i].shape == held_[i].shape,
              name + " has shape " + spell(inputs[i].shape) + ", not " + spell(held_[i].shape));
      const Array narrow = with_dtype(inputs[i], held_[i].dtype, name);
      if (narrow.memory.size()) std::memcpy(held_[i].memory.data(), narrow.memory.data(), narrow.memory.size());
    }
  }

  void invoke() override {
    std::vector<Any> given;
    for (const Value& argument : arguments_) given.push_back(argument.any);
    results_ = call(main_, given);
  }

  Arrays outputs() override {
    Arrays found;
    if (results_.any.type == kTensor) {
      found.push_back(array(results_.any));
      return found;
    }
    require(results_.any.type == kArray, "the build's main function gives no tensors");
    const auto* list = fields<Sequence>(results_.any.object);
    for (int64_t i = 0; i < list->size; ++i) found.push_back(array(list->items[i]));
    return found;
  }

 private:
  static constexpr int kInteger = 1, kBool = 2, kText = 8, kFirstObject = 64, kFunction = 68, kTensor = 70, kArray = 71;
  static constexpr int kCpu = 1, kPooledAllocator = 2;

  // The C interface of tvm-ffi 0.1 (tvm/ffi/c_api.h) and DLPack, as far as it is used here.
  struct Any {
    Any() = default;
    explicit Any(int value) : type(kInteger), integer(value) {}
    explicit Any(bool value) : type(kBool), integer(value) {}
    explicit Any(const char* value) : type(kText), text(value) {}
    Any(int type_, void* value) : type(type_), object(value) {}

    int32_t type = 0;
    uint32_t padding = 0;
    union {
      int64_t integer = 0;
      const char* text;
      void* object;
    };
  };
  struct ByteArray {
    const char* data;
    size_t size;
  };
  struct Sequence {
    const Any* items;
    int64_t size, capacity;
  };
  struct Failure {
    ByteArray kind, message;
  };
  struct Tensor {
    void* data;
    int32_t device, device_id, rank;
    uint8_t code, bits;
    uint16_t lanes;
    const int64_t *shape, *strides;
    uint64_t offset;
  };
  struct ManagedTensor {
    Tensor tensor;
    void* context;
    void (*deleter)(ManagedTensor*);
  };

  // A value that a call gave. An object among them is given back once.
  struct Value {
    Any any;
    Handle object{nullptr, nullptr};
  };

  Value own(const Any& any) const {
    const bool is_object = any.type >= kFirstObject;
    return {any, Handle(is_object ? any.object : nullptr, release_)};
  }

  // What follows the header that every object begins with.
  template <typename Fields>
  static const Fields* fields(const void* object) {
    return reinterpret_cast<const Fields*>(static_cast<const uint8_t*>(object) + 24);
  }

  void check(int status) const {
    if (status == 0) return;
    Handle error(nullptr, release_);
    void* raised = nullptr;
    raised_(&raised);
    error.reset(raised);
    if (!error) throw Error("TVM failed without a message");
    const ByteArray& message = fields<Failure>(raised)->message;
    const std::string why(message.data, message.size);
    throw Error("TVM: " + why.substr(0, why.find('\n')));
  }

  Value global(const char* name) const {
    const ByteArray key{name, std::strlen(name)};
    void* found = nullptr;
    check(get_global_(&key, &found));
    require(found != nullptr, std::string("TVM's runtime has no ") + name);
    return own(Any(kFunction, found));
  }

  Value call(const Value& function, std::vector<Any> arguments) const {
    Any result;
    check(function_call_(function.any.object, arguments.data(), static_cast<int32_t>(arguments.size()), &result));
    return own(result);
  }

  Value function(const Value& module, const char* name) const {
    Value found = call(global("ffi.ModuleGetFunction"), {module.any, Any(name), Any(true)});
    require(found.any.type == kFunction, std::string("the build has no function ") + name);
    return found;
  }

  // Keep `array`, and make a tensor over its memory the next argument of main.
  void hand_in(Array array) {
    struct Owned {
      ManagedTensor managed;
      Shape shape, strides;
    };
    auto owned = std::make_unique<Owned>();
    const DtypeFacts& known = facts(array.dtype);
    const auto rank = static_cast<int32_t>(array.shape.size());
    owned->shape = array.shape;
    owned->strides.assign(array.shape.size(), 1);
    for (size_t axis = array.shape.size(); axis-- > 1;)
      owned->strides[axis - 1] = owned->strides[axis] * std::max<int64_t>(array.shape[axis], 1);
    owned->managed.tensor = {array.memory.data(), kCpu, 0, rank, known.dlpack, static_cast<uint8_t>(known.size * 8), 1,
                             owned->shape.data(), owned->strides.data(), 0};
    owned->managed.context = owned.get();
    owned->managed.deleter = [](ManagedTensor* self) { delete static_cast<Owned*>(self->context); };
    void* made = nullptr;
    check(from_dlpack_(&owned->managed, 0, 1, &made));
    owned.release();
    arguments_.push_back(own(Any(kTensor, made)));
    held_.push_back(std::move(array));
  }

  static Array array(const Any& any) {
    require(any.type == kTensor, "the build's main function gives something else than tensors");
    const auto* tensor = fields<Tensor>(any.object);
    const auto matches = [&](const DtypeFacts& f) {
      return f.dlpack == tensor->code && f.size * 8 == tensor->bits && tensor->lanes == 1;
    };
    return Array(dtype_where(matches, kUnknownOutput), Shape(tensor->shape, tensor->shape + tensor->rank),
                 static_cast<const uint8_t*>(tensor->data) + tensor->offset);
  }

  static std::string version_of(const Library& ffi) {
    uint32_t parts[3] = {};
    void (*get)(uint32_t*) = nullptr;
    ffi.bind(get, "TVMFFIGetVersion");
    get(parts);
    return "tvm-ffi " + std::to_string(parts[0]) + "." + std::to_string(parts[1]) + "." + std::to_string(parts[2]);
  }

  // Refuse machine code for another kind of CPU, or for instructions (as Linux spells them) that this one lacks.
  static void check_machine(const Json& runtime) {
    if (const Json* machine = runtime.find("machine"))
      require(machine->text() == machine_name(),
              "this build is machine code for " + machine->text() + ", and this machine is " + machine_name());
    const Json* needed = runtime.find("instructions");
    if (!needed || needed->items().empty()) return;
    std::ifstream file("/proc/cpuinfo");
    std::set<std::string> known;
    for (std::string word; file >> word;) known.insert(word);
    std::string lacking;
    for (const Json& each : needed->items())
      if (!known.count(each.text())) lacking += (lacking.empty() ? "" : ", ") + each.text();
    require(lacking.empty(), "this build needs instructions that this CPU lacks: " + lacking);
  }

  static Shape integers(const Json& list) {
    Shape found;
    for (const Json& each : list.items()) found.push_back(each.integer());
    return found;
  }

  // Weights lie in a safetensors file: 8 bytes of length, a JSON header, the bytes of every tensor.
  void load_weights(const Json& runtime) {
    const std::string damaged = "the file of the weights is damaged";
    std::ifstream file(build_.file("weights"), std::ios::binary);
    uint8_t length[8] = {};
    file.read(reinterpret_cast<char*>(length), sizeof length);
    uint64_t size = 0;
    for (size_t i = 8; i-- > 0;) size = size << 8 | length[i];
    require(file.good() && size < (uint64_t{1} << 28), damaged);
    std::string header(size, ' ');
    file.read(&header[0], static_cast<std::streamsize>(size));
    require(file.good(), damaged);
    const Json table = JsonReader(header, "the header of the weights").read();
    for (const Json& name : runtime["parameters"].items()) {
      const Json& entry = table[name.text()];
      const std::string& dtype = entry["dtype"].text();
      const Dtype known = dtype_where([&](const DtypeFacts& f) { return dtype == f.safetensors; }, damaged);
      Array array(known, integers(entry["shape"]));
      const Shape range = integers(entry["data_offsets"]);
      const auto bytes = static_cast<std::streamsize>(array.memory.size());
      require(range.size() == 2 && range[0] >= 0 && range[1] - range[0] == bytes, damaged);
      file.seekg(static_cast<std::streamoff>(8 + size) + range[0]);
      file.read(reinterpret_cast<char*>(array.memory.data()), bytes);
      require(file.good(), damaged);
      hand_in(std::move(array));
    }
  }

  const Build& build_;
  int (*get_global_)(const ByteArray*, void**) = nullptr;
  int (*function_call_)(void*, Any*, int32_t, Any*) = nullptr;
  int (*from_dlpack_)(ManagedTensor*, int32_t, int32_t, void**) = nullptr;
  void (*raised_)(void**) = nullptr;
  void (*release_)(void*) = nullptr;
  Arrays held_;  // the inputs, then the weights: what the arguments are tensors over
  Value machine_, main_, results_;
  std::vector<Value> arguments_;
};

std::unique_ptr<Runtime> open_runtime(const Build& build, const Options& options) {
  const std::string& name = build.runtime()["name"].text();
  if (name == "onnxruntime") return std::make_unique<OnnxRuntime>(build, options);
  if (name == "litert") return std::make_unique<LiteRt>(build, options);
  if (name == "tvm") return std::make_unique<Tvm>(build, options);
  throw Error("this runner runs builds for onnxruntime, litert and tvm, not for " + name);
}

// ---- Golden and time -----------------------------------------------------------------------------------------------

// The bytes of one row of `array`.
uint8_t* row_of(const Array& array, int64_t row) {
  const size_t size = array.memory.size() / static_cast<size_t>(array.shape[0]);
  return array.memory.data() + static_cast<size_t>(row) * size;
}

Arrays rows_of(const Arrays& arrays, int64_t row) {
  Arrays found;
  for (const Array& array : arrays) {
    Shape shape = array.shape;
    shape[0] = 1;
    found.emplace_back(array.dtype, shape, row_of(array, row));
  }
  return found;
}

// The batch of `inputs` where a build that is made for one row has to go row by row; 1 where it runs at once.
int64_t batch_of(const Runtime& runtime, const Arrays& inputs) {
  if (!runtime.by_row() || inputs.empty()) return 1;
  for (const Array& array : inputs)
    require(!array.shape.empty() && array.shape[0] == inputs[0].shape[0], "the inputs have batches of different sizes");
  return inputs[0].shape[0];
}

Arrays run_once(Runtime& runtime, const Arrays& inputs) {
  runtime.set_inputs(inputs);
  runtime.invoke();
  return runtime.outputs();
}

// Run one sample. Returns: the outputs, in the dtypes of the signature.
Arrays run(Runtime& runtime, const Build& build, const Arrays& inputs) {
  Arrays found;
  const int64_t batch = batch_of(runtime, inputs);
  if (batch == 1) found = run_once(runtime, inputs);
  for (int64_t row = 0; batch > 1 && row < batch; ++row) {
    const Arrays part = run_once(runtime, rows_of(inputs, row));
    require(row == 0 || part.size() == found.size(), "the build gives another number of outputs for another row");
    for (size_t i = 0; i < part.size(); ++i) {
      require(!part[i].shape.empty() && part[i].shape[0] == 1, "an output of a row is not one row");
      if (row == 0) {
        Shape whole = part[i].shape;
        whole[0] = batch;
        found.emplace_back(part[i].dtype, whole);
      }
      const size_t size = part[i].memory.size();
      require(size * static_cast<size_t>(batch) == found[i].memory.size(), "an output has rows of different sizes");
      if (size) std::memcpy(row_of(found[i], row), part[i].memory.data(), size);
    }
  }
  require(found.size() == build.outputs.size(), "the build gives another number of outputs than its manifest says");
  for (size_t i = 0; i < found.size(); ++i)
    if (!is_float(found[i].dtype) && !is_float(build.outputs[i].dtype))
      found[i] = with_dtype(found[i], build.outputs[i].dtype, "output " + build.outputs[i].name);
  return found;
}

// One golden sample, in the order of the signature.
struct Sample {
  Arrays inputs, outputs;
};

std::vector<Sample> read_golden(const Build& build) {
  std::vector<Sample> samples;
  if (build.samples == 0) return samples;
  const Npz golden(read_file(build.folder + "/golden.npz", "golden.npz", size_t{1} << 30));
  for (size_t i = 0; i < build.samples; ++i) {
    const std::string start = std::to_string(i);
    Sample sample;
    for (const Port& port : build.inputs) {
      Array array = golden.read(start + "/input/" + port.name);
      require(array.dtype == port.dtype, "golden.npz: input " + port.name + " is no " + facts(port.dtype).name);
      sample.inputs.push_back(std::move(array));
    }
    for (const Port& port : build.outputs) sample.outputs.push_back(golden.read(start + "/output/" + port.name));
    require(!sample.inputs.empty() || !sample.outputs.empty(), "the model has neither inputs nor outputs");
    samples.push_back(std::move(sample));
  }
  return samples;
}

// What each output is off by at most, over all golden samples; and in words what leaves the tolerance.
struct Findings {
  std::vector<double> worst;
  std::vector<std::string> problems;
};

Findings compare(Runtime& runtime, const Build& build, const std::vector<Sample>& golden) {
  Findings findings;
  findings.worst.assign(build.outputs.size(), 0);
  for (size_t sample = 0; sample < golden.size(); ++sample) {
    const Arrays found = run(runtime, build, golden[sample].inputs);
    for (size_t i = 0; i < found.size(); ++i) {
      const std::string& name = build.outputs[i].name;
      const double off = difference(golden[sample].outputs[i], found[i]);
      findings.worst[i] = std::max(findings.worst[i], off);
      if (off <= build.tolerance) continue;
      char words[96];
      std::snprintf(words, sizeof words, ": off by %.3g of the largest value, tolerance %.3g", off, build.tolerance);
      findings.problems.push_back("golden sample " + std::to_string(sample) + ", output " + name + words);
    }
  }
  return findings;
}

double milliseconds(const std::function<void()>& work) {
  const auto started = std::chrono::steady_clock::now();
  work();
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - started).count();
}

// Time runs on what is set: the nearest-rank percentiles.
Json latency(Runtime& runtime, int runs) {
  for (int i = 0; i < kWarmUps; ++i) runtime.invoke();
  std::vector<double> times;
  for (int i = 0; i < runs; ++i) times.push_back(milliseconds([&] { runtime.invoke(); }));
  std::sort(times.begin(), times.end());
  const auto percentile = [&](double share) {
    const auto rank = static_cast<size_t>(std::ceil(share * static_cast<double>(times.size())));
    return times[std::max<size_t>(rank, 1) - 1];
  };
  return {{"n", static_cast<double>(runs)},
          {"min", times.front()},
          {"p50", percentile(.50)},
          {"p90", percentile(.90)},
          {"p99", percentile(.99)}};
}

// The most memory that this process has held, in bytes.
double peak_memory() {
  std::ifstream file("/proc/self/status");
  for (std::string word; file >> word;) {
    double kilobytes = 0;
    if (word == "VmHWM:" && file >> kilobytes) return kilobytes * 1024;
  }
  struct rusage used {};
  getrusage(RUSAGE_SELF, &used);
#if defined(__APPLE__)
  return static_cast<double>(used.ru_maxrss);
#else
  return static_cast<double>(used.ru_maxrss) * 1024;
#endif
}

// ---- The command line ----------------------------------------------------------------------------------------------

constexpr const char* kUsage = "usage: polycast_run BUILD [--runs N] [--threads N] [--lib PATH]... [--no-golden]";

struct Usage : std::runtime_error {
  using std::runtime_error::runtime_error;
};

int whole_number(const std::string& text, const std::string& option) {
  const bool digits = !text.empty() && text.size() < 7 && text.find_first_not_of("0123456789") == std::string::npos;
  if (!digits) throw Usage(option + " takes a whole number, not '" + text + "'");
  return std::stoi(text);
}

Options parse(const std::vector<std::string>& words) {
  Options options;
  for (size_t i = 0; i < words.size(); ++i) {
    const std::string& word = words[i];
    const auto value = [&]() -> const std::string& {
      if (i + 1 == words.size()) throw Usage(word + " needs a value");
      return words[++i];
    };
    if (word == "--runs") {
      options.runs = whole_number(value(), word);
    } else if (word == "--threads") {
      options.threads = whole_number(value(), word);
    } else if (word == "--lib") {
      options.libraries.push_back(value());
    } else if (word == "--no-golden") {
      options.golden = false;
    } else if (word.compare(0, 1, "-") == 0 || !options.build.empty()) {
      throw Usage("unknown option " + word);
    } else {
      options.build = word;
    }
  }
  if (options.build.empty()) throw Usage("which build?");
  while (options.build.size() > 1 && options.build.back() == '/') options.build.pop_back();
  if (options.threads == 0) options.threads = static_cast<int>(std::max(1U, std::thread::hardware_concurrency()));
  return options;
}

// Check, open, run and time the build that `options` names. Returns: what was found.
Json examine(const Options& options) {
  const Build build = open_build(options.build);
  const std::vector<Sample> golden = read_golden(build);
  std::unique_ptr<Runtime> runtime;
  const double loading = milliseconds([&] { runtime = open_runtime(build, options); });
  Findings findings;
  if (options.golden) findings = compare(*runtime, build, golden);
  Arrays row;
  Json times;
  if (options.runs > 0 && !golden.empty()) {
    const bool batched = batch_of(*runtime, golden[0].inputs) > 1;
    if (batched) row = rows_of(golden[0].inputs, 0);
    runtime->set_inputs(batched ? row : golden[0].inputs);
    times = latency(*runtime, options.runs);
  }
  Json outputs(Json::Kind::kArray), problems(Json::Kind::kArray);
  for (size_t i = 0; i < findings.worst.size(); ++i)
    outputs.add({{"name", build.outputs[i].name}, {"worst", findings.worst[i]}});
  for (const std::string& problem : findings.problems) problems.add(problem);
  const Json& model = build.manifest["model"];
  return {
      {"ok", findings.problems.empty()},
      {"build",
       {{"target", build.manifest["target"].text()},
        {"precision", build.manifest["recipe"]["name"].text()},
        {"model", model["name"].text()},
        {"digest", model["digest"].text()}}},
      {"runtime",
       {{"name", build.runtime()["name"].text()},
        {"version", runtime->version.empty() ? Json() : Json(runtime->version)},
        {"library", runtime->library},
        {"left_out", runtime->left_out},
        {"threads", static_cast<double>(options.threads)}}},
      {"golden",
       {{"n", options.golden ? static_cast<double>(golden.size()) : 0.0},
        {"tolerance", build.tolerance},
        {"outputs", outputs},
        {"problems", problems}}},
      {"latency_ms", times},
      {"load_ms", loading},
      {"peak_memory_bytes", peak_memory()},
      {"on",
       {{"system", system_name()},
        {"machine", machine_name()},
        {"cpus", static_cast<double>(std::thread::hardware_concurrency())}}},
  };
}

int fail(const std::string& why) {
  std::printf("%s\n", Json{{"error", why}}.dump().c_str());
  std::fprintf(stderr, "polycast_run: %s\n", why.c_str());
  return 1;
}

int run_main(const std::vector<std::string>& words) {
  try {
    const Json found = examine(parse(words));
    std::printf("%s\n", found.dump().c_str());
    for (const Json& provider : found["runtime"]["left_out"].items())
      std::fprintf(stderr, "polycast_run: %s is not here: this runs on the CPU\n", provider.text().c_str());
    for (const Json& problem : found["golden"]["problems"].items())
      std::fprintf(stderr, "polycast_run: %s\n", problem.text().c_str());
    return found["ok"].truth() ? 0 : 1;
  } catch (const Usage& error) {
    std::fprintf(stderr, "polycast_run: %s\n%s\n", error.what(), kUsage);
    return 2;
  } catch (const std::bad_alloc&) {
    return fail("there is not enough memory");
  } catch (const std::exception& error) {
    return fail(error.what());
  }
}

}  // namespace

int main(int count, char** words) { return run_main(std::vector<std::string>(words + 1, words + count)); }
