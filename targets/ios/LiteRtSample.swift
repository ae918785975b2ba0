// Runs the golden samples of a build with LiteRT, and prints how near they come and how long a run takes.
// Podfile beside this file; resources of the app: model.tflite, manifest.json, golden.npz.

import Foundation
import TensorFlowLite

private let runs = 50

/// Whether every output is within the tolerance of the build, and there was one.
func runGolden() throws -> Bool {
    let golden = try Golden()
    let path = Bundle.main.path(forResource: "model", ofType: "tflite")!
    var options = Interpreter.Options()
    options.threadCount = max(1, ProcessInfo.processInfo.activeProcessorCount / 2)
    options.isXNNPackEnabled = true
    let interpreter = try Interpreter(modelPath: path, options: options)
    try interpreter.allocateTensors()
    var within = golden.isThere
    for sample in 0..<golden.count {
        let given = golden.inputs.map { golden.input(sample, $0) }
        var found = [Data](repeating: Data(), count: golden.outputs.count)
        for row in 0..<(golden.byRow ? given[0].shape[0] : 1) {
            for (place, tensor) in given.enumerated() {
                try interpreter.copy(golden.byRow ? tensor.row(row).data : tensor.data, toInputAt: place)
            }
            try interpreter.invoke()
            for place in golden.outputs.indices {
                found[place].append(try interpreter.output(at: place).data)
            }
        }
        for (place, name) in golden.outputs.enumerated() {
            let off = try golden.deviation(golden.output(sample, name), found[place])
            print("sample \(sample), \(name): off by \(off), tolerance \(golden.tolerance)")
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
