// Runs the golden samples of a build with onnxruntime, and logs how near they come and how long a run takes.
//
// OnnxRuntime.gradle.kts beside this file says what app/build.gradle.kts needs. app/src/main/assets: model.ort, manifest.json, golden.npz
//
// For an app that has no operator but those of this model, build onnxruntime with required_operators.config:
//   build.py --android --minimal_build extended --include_ops_by_config required_operators.config

package polycast

import ai.onnxruntime.OnnxJavaType
import ai.onnxruntime.OnnxTensor
import ai.onnxruntime.OrtEnvironment
import ai.onnxruntime.OrtSession
import android.content.Context
import android.util.Log
import java.nio.ByteBuffer
import java.nio.FloatBuffer
import java.nio.IntBuffer
import java.nio.LongBuffer

private const val TAG = "polycast"
private const val RUNS = 50

/** Whether every output is within the tolerance of the build, and there was one. */
fun runGolden(context: Context): Boolean {
    val golden = Golden(context.assets)
    val environment = OrtEnvironment.getEnvironment()
    val session = environment.createSession(context.assets.open("model.ort").readBytes(), OrtSession.SessionOptions())
    var within = golden.isThere
    for (sample in 0 until golden.count) {
        val feeds = golden.inputs.associateWith { tensor(environment, golden.input(sample, it)) }
        session.run(feeds).use { results ->
            for (name in golden.outputs) {
                val found = (results.get(name).get() as OnnxTensor).byteBuffer
                val off = golden.deviation(golden.output(sample, name), ByteArray(found.remaining()).also { found.get(it) })
                Log.i(TAG, "sample $sample, $name: off by $off, tolerance ${golden.tolerance}")
                within = within && off <= golden.tolerance
            }
        }
        if (sample == 0) time(session, feeds)
        feeds.values.forEach { it.close() }
    }
    session.close()
    return within
}

private fun time(session: OrtSession, feeds: Map<String, OnnxTensor>) {
    val times = List(RUNS) {
        val started = System.nanoTime()
        session.run(feeds).close()
        (System.nanoTime() - started) / 1e6
    }.sorted()
    Log.i(TAG, "n=$RUNS: median ${times[RUNS / 2]} ms, 90 % within ${times[RUNS * 9 / 10]} ms")
}

private fun tensor(environment: OrtEnvironment, given: Tensor): OnnxTensor = when (given.type) {
    "<f4" -> OnnxTensor.createTensor(environment, FloatBuffer.wrap(given.floats()), given.shape)
    "<i4" -> OnnxTensor.createTensor(environment, IntBuffer.wrap(given.ints()), given.shape)
    "<i8" -> OnnxTensor.createTensor(environment, LongBuffer.wrap(given.longs()), given.shape)
    "|b1" -> OnnxTensor.createTensor(environment, direct(given), given.shape, OnnxJavaType.BOOL)
    "|i1" -> OnnxTensor.createTensor(environment, direct(given), given.shape, OnnxJavaType.INT8)
    "|u1" -> OnnxTensor.createTensor(environment, direct(given), given.shape, OnnxJavaType.UINT8)
    else -> throw IllegalArgumentException("an input of ${given.type}: add it here")
}

private fun direct(given: Tensor) =
    ByteBuffer.allocateDirect(given.bytes.remaining()).apply { put(given.bytes.duplicate()); rewind() }
