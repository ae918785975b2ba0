// The golden samples of a build: inputs, reference outputs, and how far an output may be from its reference.
// Add manifest.json and golden.npz of the build to the app's resources, beside the model.

import Compression
import Foundation

/// Elements of one type, as NumPy spells it ("<f4", "<i8"), little-endian.
struct Tensor {
    let type: String
    let shape: [Int]
    let data: Data

    var floats: [Float] { data.withUnsafeBytes { bytes in
        (0..<data.count / 4).map { Float(bitPattern: UInt32(littleEndian: bytes.loadUnaligned(fromByteOffset: 4 * $0, as: UInt32.self))) }
    } }

    /// Row `index` of a batch, for a model that was made for one row.
    func row(_ index: Int) -> Tensor {
        let size = data.count / shape[0]
        return Tensor(type: type, shape: [1] + shape.dropFirst(), data: data.subdata(in: index * size..<(index + 1) * size))
    }
}

struct Golden {
    let count: Int
    let tolerance: Double
    /// Whether the model takes one row, and a batch goes row by row.
    let byRow: Bool
    let inputs: [String]
    let outputs: [String]
    private let arrays: [String: Tensor]

    init(bundle: Bundle = .main) throws {
        func resource(_ name: String, _ kind: String) throws -> Data {
            guard let url = bundle.url(forResource: name, withExtension: kind) else { throw CocoaError(.fileNoSuchFile) }
            return try Data(contentsOf: url)
        }
        let manifest = try JSONSerialization.jsonObject(with: resource("manifest", "json")) as! [String: Any]
        let golden = manifest["golden"] as! [String: Any], signature = manifest["signature"] as! [String: Any]
        func names(_ kind: String) -> [String] { (signature[kind] as! [[String: Any]]).map { $0["name"] as! String } }
        count = golden["n"] as! Int
        tolerance = (golden["tolerance"] as! NSNumber).doubleValue
        byRow = (manifest["runtime"] as! [String: Any])["by_row"] as? Bool ?? false
        inputs = names("inputs")
        outputs = names("outputs")
        arrays = try unzip(resource("golden", "npz")).mapValues(read)
    }

    func input(_ sample: Int, _ name: String) -> Tensor { arrays["\(sample)/input/\(name)"]! }
    func output(_ sample: Int, _ name: String) -> Tensor { arrays["\(sample)/output/\(name)"]! }

    /// Whether there is anything to compare: a build that ran nowhere has no golden samples.
    var isThere: Bool { count > 0 && !outputs.isEmpty }

    /// How far `found`, little-endian elements, is from `wanted`: of floats the largest deviation as a share of the
    /// largest wanted value, of integers and booleans the share that differs.
    func deviation(_ wanted: Tensor, _ found: Data) throws -> Double {
        guard wanted.data.count == found.count else { return .infinity }
        if wanted.type == "<f4" {
            return gap(wanted.floats, Tensor(type: wanted.type, shape: wanted.shape, data: found).floats)
        }
        guard "biu".contains(wanted.type.dropFirst().prefix(1)), let size = Int(wanted.type.dropFirst(2)) else {
            throw CocoaError(.featureUnsupported) // an output of another type: add it here
        }
        let want = [UInt8](wanted.data), got = [UInt8](found)
        let differ = stride(from: 0, to: got.count, by: size).filter { want[$0..<$0 + size] != got[$0..<$0 + size] }
        return got.isEmpty ? 0 : Double(differ.count * size) / Double(got.count)
    }

    private func gap(_ wanted: [Float], _ found: [Float]) -> Double {
        var largest = 0.0, worst = 0.0
        for (want, got) in zip(wanted, found) {
            if want.isFinite && got.isFinite {
                largest = max(largest, abs(Double(want)))
                worst = max(worst, abs(Double(got) - Double(want)))
            } else if want != got && !(want.isNaN && got.isNaN) {
                return .infinity
            }
        }
        return largest > 0 ? worst / largest : worst
    }
}

/// NumPy's .npy: a magic word, the length of a header, the header, the elements.
private func read(_ file: Data) -> Tensor {
    let bytes = [UInt8](file)
    let wide = bytes[6] > 1, start = wide ? 12 : 10
    let length = (0..<(wide ? 4 : 2)).reduce(0) { $0 | Int(bytes[8 + $1]) << (8 * $1) }
    let header = String(decoding: bytes[start..<start + length], as: UTF8.self)
    func after(_ word: String, until end: Character) -> Substring {
        header[header.range(of: word)!.upperBound...].prefix { $0 != end }
    }
    let shape = after("'shape': (", until: ")").split(separator: ",").compactMap { Int($0.trimmingCharacters(in: .whitespaces)) }
    return Tensor(type: String(after("'descr': '", until: "'")), shape: shape, data: Data(bytes[(start + length)...]))
}

/// The files of a zip archive whose sizes stand in its directory, stored or deflated.
private func unzip(_ archive: Data) -> [String: Data] {
    let bytes = [UInt8](archive)
    func number(_ at: Int, _ size: Int) -> Int { (0..<size).reduce(0) { $0 | Int(bytes[at + $1]) << (8 * $1) } }
    var end = bytes.count - 22
    while number(end, 4) != 0x06054b50 { end -= 1 }
    var files: [String: Data] = [:], at = number(end + 16, 4)
    for _ in 0..<number(end + 10, 2) {
        let packed = number(at + 20, 4), size = number(at + 24, 4), local = number(at + 42, 4)
        let name = String(decoding: bytes[at + 46..<at + 46 + number(at + 28, 2)], as: UTF8.self)
        let start = local + 30 + number(local + 26, 2) + number(local + 28, 2)
        let content = bytes[start..<start + packed]
        files[name.replacingOccurrences(of: ".npy", with: "")] =
            number(at + 10, 2) == 0 ? Data(content) : inflate(Data(content), to: size)
        at += 46 + number(at + 28, 2) + number(at + 30, 2) + number(at + 32, 2)
    }
    return files
}

private func inflate(_ packed: Data, to size: Int) -> Data {
    var plain = Data(count: size)
    let written = plain.withUnsafeMutableBytes { out in
        packed.withUnsafeBytes { compression_decode_buffer(
            out.bindMemory(to: UInt8.self).baseAddress!, size,
            $0.bindMemory(to: UInt8.self).baseAddress!, packed.count, nil, COMPRESSION_ZLIB)
        }
    }
    return plain.prefix(written)
}
