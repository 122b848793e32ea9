// A configuration described once: each key with its name, default, help text, limits and where its value lives. From that
// one description the program reads JSON into a struct, complains in the user's terms, and writes the resolved values back.
#pragma once

#include <cstdint>
#include <functional>
#include <limits>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "data/json.h"

namespace outeffhop {

/// What a resumed run may do to a key.
enum class OnResume : std::uint8_t {
  fixed,  ///< the run would no longer be the same run: refused
  noted,  ///< allowed and mentioned
  free,   ///< allowed
};

/// Where a key of a default "auto" stands before its value is known (see Schema::integer_or_auto). No id, size or kNoId.
constexpr std::int64_t kAuto = std::numeric_limits<std::int64_t>::min();

/// "none" for a token id, as the ops understand it.
constexpr std::int64_t kNoId = -1;

/// The least number above 0 (see Schema::number).
constexpr double kAboveZero = std::numeric_limits<double>::denorm_min();

class Schema {
 public:
  struct Key {
    std::string block, name;           ///< "training", "steps"; block "" for keys outside every block
    std::vector<std::string> aliases;  ///< other spellings that are read, never written
    std::string expectation;           ///< "an integer, at least 1": the end of an error message
    std::string help;
    OnResume on_resume = OnResume::fixed;
    nlohmann::ordered_json standard;                  ///< the value while no one sets it
    std::function<bool(const nlohmann::json&)> read;  ///< false: not what `expectation` says
    std::function<nlohmann::ordered_json()> write;

    std::string path() const { return block.empty() ? name : block + "." + name; }
    Key& alias(const std::string& other);
    Key& resume(OnResume rule);
  };

  /// Keys declared from here on belong to this block.
  void block(const std::string& name);

  // A key of each kind. `field` must outlive the schema and holds the default; it is written by read().
  Key& integer(const std::string& name, std::int64_t* field, std::int64_t minimum, const std::string& help);
  /// As integer(), and the word "auto" stands for kAuto.
  Key& integer_or_auto(const std::string& name, std::int64_t* field, std::int64_t minimum, const std::string& help);
  /// A token id: an integer from 0, or the word "auto" for kAuto, or "none" for kNoId.
  Key& id_auto_or_none(const std::string& name, std::int64_t* field, const std::string& help);
  /// A number in [minimum, maximum], or for a minimum of kAboveZero in (0, maximum].
  Key& number(const std::string& name, double* field, double minimum, double maximum, const std::string& help);
  Key& boolean(const std::string& name, bool* field, const std::string& help);
  Key& text(const std::string& name, std::string* field, const std::string& help);
  Key& choice(const std::string& name, std::string* field, std::vector<std::string> options, const std::string& help);
  /// A list of integers >= 0. `known` tells whether any was given, the word "auto" (not known) included.
  Key& integers_or_auto(const std::string& name, std::vector<std::int64_t>* field, bool* known, const std::string& help);

  enum class Unknown : std::uint8_t { refuse, ignore };

  /// Reads a JSON object. Throws Error(usage), beginning with `origin` (a file name), for an unknown key (naming the nearest
  /// known one), a wrong type, a value outside its limits, or one key in two spellings. Keys that are absent keep their
  /// field's value.
  void read(const nlohmann::json& values, const std::string& origin, Unknown unknown = Unknown::refuse) const;

  /// Every key with its present value, blocks as objects, in the order of declaration.
  nlohmann::ordered_json write() const;

  const std::vector<Key>& keys() const { return keys_; }

  /// The declared path nearest to `path` by edit distance, or "" when none is near.
  std::string nearest(const std::string& path) const;

 private:
  Key& add(const std::string& name, const std::string& expectation, const std::string& help);
  const Key* find(const std::string& block, const std::string& name) const;
  void read_block(const std::string& block, const nlohmann::json& values, const std::string& origin, Unknown unknown) const;
  const Key* read_key(const std::string& block, const std::string& name, const nlohmann::json& value,
                      const std::string& origin, Unknown unknown) const;

  std::string block_;
  std::vector<std::string> blocks_;
  std::vector<Key> keys_;
};

/// Whether `text` is UTF-8, as JSON must be.
bool is_utf8(const std::string& text);

/// Levenshtein distance: insertions, deletions and substitutions that turn a into b.
std::size_t edit_distance(const std::string& a, const std::string& b);

}  // namespace outeffhop
