// Runs the golden samples of a build with LiteRT, and prints how near they come and how long a run takes.
// Podfile beside this file; resources of the app: model.tflite, manifest.json, golden.npz.

import Foundation
import TensorFlowLite

private let runs = 50

/// Whether every float output is within the tolerance of the build.
func runGolden() throws -> Bool {
    let golden = try Golden()
    let path = Bundle.main.path(forResource: "model", ofType: "tflite")!
    var options = Interpreter.Options()
    options.threadCount = max(1, ProcessInfo.processInfo.activeProcessorCount / 2)
    options.isXNNPackEnabled = true
    let interpreter = try Interpreter(modelPath: path, options: options)
    try interpreter.allocateTensors()
    var within = true
    for sample in 0..<golden.count {
        let given = golden.inputs.map { golden.input(sample, $0) }
        var found = [[Float]](repeating: [], count: golden.outputs.count)
        for row in 0..<(golden.byRow ? given[0].shape[0] : 1) {
            for (place, tensor) in given.enumerated() {
                try interpreter.copy(golden.byRow ? tensor.row(row).data : tensor.data, toInputAt: place)
            }
            try interpreter.invoke()
            for (place, name) in golden.outputs.enumerated() where golden.output(sample, name).type == "<f4" {
                found[place] += Tensor(type: "<f4", shape: [], data: try interpreter.output(at: place).data).floats
            }
        }
        for (place, name) in golden.outputs.enumerated() where golden.output(sample, name).type == "<f4" {
            let off = golden.deviation(golden.output(sample, name).floats, found[place])
            print("sample \(sample), \(name): off by \(off) of the largest value, tolerance \(golden.tolerance)")
            within = within && off <= golden.tolerance
        }
    }
    let times = try (0..<runs).map { _ -> Double in
        let started = DispatchTime.now().uptimeNanoseconds
        try interpreter.invoke()
        return Double(DispatchTime.now().uptimeNanoseconds - started) / 1e6
    }.sorted()
    print("n=\(runs): median \(times[runs / 2]) ms, 90 % within \(times[runs * 9 / 10]) ms")
    return within
}
