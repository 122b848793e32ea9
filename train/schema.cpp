#include "train/schema.h"

#include <algorithm>
#include <cmath>
#include <map>
#include <numeric>
#include <optional>

#include "kernels/error.h"

namespace outeffhop {
namespace {

/// An integer, also when written as 1e5. Nothing otherwise.
std::optional<std::int64_t> as_integer(const nlohmann::json& value) {
  if (value.is_number_unsigned()) {
    const auto u = value.get<std::uint64_t>();
    if (u > static_cast<std::uint64_t>(std::numeric_limits<std::int64_t>::max())) return std::nullopt;
    return static_cast<std::int64_t>(u);
  }
  if (value.is_number_integer()) return value.get<std::int64_t>();
  if (value.is_number_float()) {
    const double d = value.get<double>();
    if (std::trunc(d) == d && std::abs(d) < 9e15) return static_cast<std::int64_t>(d);
  }
  return std::nullopt;
}

std::string quoted(const std::vector<std::string>& options) {
  std::vector<std::string> q;
  for (const std::string& o : options) q.push_back('"' + o + '"');
  return fmt::format("{}", fmt::join(q, ", "));
}

}  // namespace

bool is_utf8(const std::string& text) {
  try {
    (void)nlohmann::json(text).dump();
    return true;
  } catch (const nlohmann::json::type_error&) {
    return false;
  }
}

std::size_t edit_distance(const std::string& a, const std::string& b) {
  std::vector<std::size_t> row(b.size() + 1);
  std::iota(row.begin(), row.end(), std::size_t{0});
  for (std::size_t i = 1; i <= a.size(); ++i) {
    std::size_t diagonal = row[0];
    row[0] = i;
    for (std::size_t j = 1; j <= b.size(); ++j) {
      const std::size_t substituted = diagonal + (a[i - 1] != b[j - 1]);
      diagonal = row[j];
      row[j] = std::min({row[j] + 1, row[j - 1] + 1, substituted});
    }
  }
  return row.back();
}

Schema::Key& Schema::Key::alias(const std::string& other) {
  aliases.push_back(other);
  return *this;
}

Schema::Key& Schema::Key::resume(OnResume rule) {
  on_resume = rule;
  return *this;
}

void Schema::block(const std::string& name) {
  block_ = name;
  if (!name.empty()) blocks_.push_back(name);
}

Schema::Key& Schema::add(const std::string& name, const std::string& expectation, const std::string& help) {
  Key key;
  key.block = block_;
  key.name = name;
  key.expectation = expectation;
  key.help = help;
  keys_.push_back(std::move(key));
  return keys_.back();
}

Schema::Key& Schema::integer(const std::string& name, std::int64_t* field, std::int64_t minimum, const std::string& help) {
  Key& key = add(name, fmt::format("an integer, at least {}", minimum), help);
  key.read = [field, minimum](const nlohmann::json& value) {
    const auto i = as_integer(value);
    if (!i || *i < minimum) return false;
    *field = *i;
    return true;
  };
  key.write = [field] { return nlohmann::ordered_json(*field); };
  key.standard = key.write();
  return key;
}

Schema::Key& Schema::integer_or_auto(const std::string& name, std::int64_t* field, std::int64_t minimum,
                                     const std::string& help) {
  Key& key = integer(name, field, minimum, help);
  key.expectation += ", or \"auto\"";
  key.read = [field, plain = key.read](const nlohmann::json& value) {
    if (value != "auto") return plain(value);
    *field = kAuto;
    return true;
  };
  key.write = [field] { return *field == kAuto ? nlohmann::ordered_json("auto") : nlohmann::ordered_json(*field); };
  key.standard = key.write();
  return key;
}

Schema::Key& Schema::id_auto_or_none(const std::string& name, std::int64_t* field, const std::string& help) {
  Key& key = integer_or_auto(name, field, 0, help);
  key.expectation = "an integer, at least 0, \"auto\" or \"none\"";
  key.read = [field, other = key.read](const nlohmann::json& value) {
    if (value != "none") return other(value);
    *field = kNoId;
    return true;
  };
  key.write = [field, other = key.write] { return *field == kNoId ? nlohmann::ordered_json("none") : other(); };
  key.standard = key.write();
  return key;
}

Schema::Key& Schema::number(const std::string& name, double* field, double minimum, double maximum,
                            const std::string& help) {
  std::string expectation = fmt::format("a number from {} to {}", minimum, maximum);
  if (std::isinf(maximum)) expectation = fmt::format("a number, at least {}", minimum);
  if (minimum == kAboveZero) expectation = fmt::format("a number above 0, at most {}", maximum);
  Key& key = add(name, expectation, help);
  key.read = [field, minimum, maximum](const nlohmann::json& value) {
    if (!value.is_number()) return false;
    const double d = value.get<double>();
    if (!(d >= minimum && d <= maximum)) return false;
    *field = d;
    return true;
  };
  key.write = [field] { return nlohmann::ordered_json(*field); };
  key.standard = key.write();
  return key;
}

Schema::Key& Schema::boolean(const std::string& name, bool* field, const std::string& help) {
  Key& key = add(name, "true or false", help);
  key.read = [field](const nlohmann::json& value) {
    if (!value.is_boolean()) return false;
    *field = value.get<bool>();
    return true;
  };
  key.write = [field] { return nlohmann::ordered_json(*field); };
  key.standard = key.write();
  return key;
}

Schema::Key& Schema::text(const std::string& name, std::string* field, const std::string& help) {
  Key& key = add(name, "a string", help);
  key.read = [field](const nlohmann::json& value) {
    if (!value.is_string()) return false;
    *field = value.get<std::string>();
    return true;
  };
  key.write = [field] { return nlohmann::ordered_json(*field); };
  key.standard = key.write();
  return key;
}

Schema::Key& Schema::choice(const std::string& name, std::string* field, std::vector<std::string> options,
                            const std::string& help) {
  Key& key = text(name, field, help);
  key.expectation = "one of " + quoted(options);
  key.read = [field, options = std::move(options)](const nlohmann::json& value) {
    if (!value.is_string() || std::find(options.begin(), options.end(), value.get<std::string>()) == options.end())
      return false;
    *field = value.get<std::string>();
    return true;
  };
  return key;
}

Schema::Key& Schema::integers_or_auto(const std::string& name, std::vector<std::int64_t>* field, bool* known,
                                      const std::string& help) {
  Key& key = add(name, "a list of integers, at least 0 each, or \"auto\"", help);
  key.read = [field, known](const nlohmann::json& value) {
    *known = value != "auto";
    if (!*known) return true;
    if (!value.is_array()) return false;
    std::vector<std::int64_t> list;
    for (const nlohmann::json& item : value) {
      const auto i = as_integer(item);
      if (!i || *i < 0) return false;
      list.push_back(*i);
    }
    *field = std::move(list);
    return true;
  };
  key.write = [field, known] { return *known ? nlohmann::ordered_json(*field) : nlohmann::ordered_json("auto"); };
  key.standard = key.write();
  return key;
}

const Schema::Key* Schema::find(const std::string& block, const std::string& name) const {
  for (const Key& key : keys_) {
    if (key.block != block) continue;
    if (key.name == name || std::find(key.aliases.begin(), key.aliases.end(), name) != key.aliases.end()) return &key;
  }
  return nullptr;
}

std::string Schema::nearest(const std::string& path) const {
  const std::string leaf = path.substr(path.rfind('.') + 1);
  std::string best;
  std::size_t best_distance = std::max<std::size_t>(2, leaf.size() / 3) + 1;  // beyond that it is another word
  // `candidate` is suggested where `text` is `known` but for a few letters; `penalty` for a second best guess.
  const auto consider = [&](const std::string& candidate, const std::string& text, const std::string& known,
                            std::size_t penalty) {
    // No distance is below the difference in length: a key of a megabyte is not compared letter by letter.
    const std::size_t difference = std::max(text.size(), known.size()) - std::min(text.size(), known.size());
    if (difference + penalty >= best_distance) return;
    const std::size_t distance = edit_distance(text, known) + penalty;
    if (distance >= best_distance) return;
    best = candidate;
    best_distance = distance;
  };
  for (const Key& key : keys_) {
    consider(key.path(), path, key.path(), 0);
    consider(key.path(), leaf, key.name, 1);  // the right word in the wrong block
  }
  for (const std::string& block : blocks_) consider(block, path, block, 0);
  return best;
}

/// Reads one value and returns its key; null for one that is passed over.
const Schema::Key* Schema::read_key(const std::string& block, const std::string& name, const nlohmann::json& value,
                                    const std::string& origin, Unknown unknown) const {
  const Key* key = find(block, name);
  const std::string path = block.empty() ? name : block + "." + name;
  if (!key) {
    if (unknown == Unknown::ignore) return nullptr;
    const std::string guess = nearest(path);
    if (guess.empty()) fail(ErrorKind::usage, "{}: \"{}\" is not a key of the configuration", origin, path);
    fail(ErrorKind::usage, "{}: \"{}\" is not a key of the configuration; did you mean \"{}\"?", origin, path, guess);
  }
  if (value.is_string() && !is_utf8(value.get<std::string>())) {
    fail(ErrorKind::usage, "{}: \"{}\" is {}, which is not UTF-8 and so fits no JSON file: rename what it names", origin,
         path, dump_text(value));
  }
  if (!key->read(value)) {
    fail(ErrorKind::usage, "{}: \"{}\" is {}, but must be {}", origin, path, dump_text(value), key->expectation);
  }
  return key;
}

void Schema::read_block(const std::string& block, const nlohmann::json& values, const std::string& origin,
                        Unknown unknown) const {
  std::map<const Key*, std::string> read;
  for (const auto& [name, value] : values.items()) {
    if (block.empty() && std::find(blocks_.begin(), blocks_.end(), name) != blocks_.end()) continue;
    const Key* key = read_key(block, name, value, origin, unknown);
    if (!key) continue;
    const auto [before, is_first] = read.emplace(key, name);
    if (!is_first) {
      fail(ErrorKind::usage, "{}: \"{}\" and \"{}\" of {} are two spellings of one key: keep one of them", origin,
           before->second, name, block.empty() ? "the configuration" : fmt::format("\"{}\"", block));
    }
  }
}

void Schema::read(const nlohmann::json& values, const std::string& origin, Unknown unknown) const {
  if (!values.is_object()) fail(ErrorKind::usage, "{}: expected a JSON object, got {}", origin, values.type_name());
  read_block("", values, origin, unknown);
  for (const std::string& name : blocks_) {
    const auto found = values.find(name);
    if (found == values.end()) continue;
    const nlohmann::json& value = *found;
    if (!value.is_object()) {
      fail(ErrorKind::usage, "{}: \"{}\" is {}, but must be an object with keys of its own", origin, name, dump_text(value));
    }
    read_block(name, value, origin, unknown);
  }
}

nlohmann::ordered_json Schema::write() const {
  nlohmann::ordered_json out = nlohmann::ordered_json::object();
  for (const Key& key : keys_) {
    if (key.block.empty()) {
      out[key.name] = key.write();
    } else {
      out[key.block][key.name] = key.write();
    }
  }
  return out;
}

}  // namespace outeffhop
