// Runs the golden samples of a build with onnxruntime and CoreML, and prints how near they come and how long a run takes.
// Package.swift beside this file; resources of the app: model.onnx, manifest.json, golden.npz.

import Foundation
import OnnxRuntimeBindings

private let runs = 50

/// Whether every output is within the tolerance of the build, and there was one.
func runGolden() throws -> Bool {
    let golden = try Golden()
    let environment = try ORTEnv(loggingLevel: .warning)
    let options = try ORTSessionOptions()
    if ORTIsCoreMLExecutionProviderAvailable() {
        try options.appendCoreMLExecutionProvider(withOptionsV2: [
            "ModelFormat": "MLProgram", "MLComputeUnits": "ALL", "RequireStaticInputShapes": "1",
        ])
    }
    let path = Bundle.main.path(forResource: "model", ofType: "onnx")!
    let session = try ORTSession(env: environment, modelPath: path, sessionOptions: options)
    var within = golden.isThere
    for sample in 0..<golden.count {
        let given = golden.inputs.map { golden.input(sample, $0) }
        var found: [String: Data] = [:]
        for row in 0..<(golden.byRow ? given[0].shape[0] : 1) {
            let feeds = try values(golden, given.map { golden.byRow ? $0.row(row) : $0 })
            let results = try session.run(withInputs: feeds, outputNames: Set(golden.outputs), runOptions: nil)
            for name in golden.outputs {
                let data = try results[name]!.tensorData() as Data
                found[name, default: Data()].append(data)
            }
        }
        for name in golden.outputs {
            let off = try golden.deviation(golden.output(sample, name), found[name, default: Data()])
            print("sample \(sample), \(name): off by \(off), tolerance \(golden.tolerance)")
            within = within && off <= golden.tolerance
        }
    }
    let first = golden.inputs.map { golden.byRow ? golden.input(0, $0).row(0) : golden.input(0, $0) }
    let feeds = try values(golden, first)
    let times = try (0..<runs).map { _ -> Double in
        let started = DispatchTime.now().uptimeNanoseconds
        _ = try session.run(withInputs: feeds, outputNames: Set(golden.outputs), runOptions: nil)
        return Double(DispatchTime.now().uptimeNanoseconds - started) / 1e6
    }.sorted()
    print("n=\(runs): median \(times[runs / 2]) ms, 90 % within \(times[runs * 9 / 10]) ms")
    return within
}

private func values(_ golden: Golden, _ tensors: [Tensor]) throws -> [String: ORTValue] {
    let kinds: [String: ORTTensorElementDataType] = ["<f4": .float, "<i4": .int32, "<i8": .int64]
    return try Dictionary(uniqueKeysWithValues: zip(golden.inputs, tensors).map { name, tensor in
        guard let kind = kinds[tensor.type] else { throw CocoaError(.featureUnsupported) }
        let shape = tensor.shape.map { NSNumber(value: $0) }
        return (name, try ORTValue(tensorData: NSMutableData(data: tensor.data), elementType: kind, shape: shape))
    })
}
