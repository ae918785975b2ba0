// Runs the golden samples of a build with LiteRT, and logs how near they come and how long a run takes.
//
// LiteRt.gradle.kts beside this file says what app/build.gradle.kts needs. app/src/main/assets: model.tflite, manifest.json, golden.npz

package polycast

import android.content.Context
import android.util.Log
import com.google.ai.edge.litert.Accelerator
import com.google.ai.edge.litert.CompiledModel
import com.google.ai.edge.litert.TensorBuffer

private const val TAG = "polycast"
private const val RUNS = 50

/** Whether every float output is within the tolerance of the build. */
fun runGolden(context: Context): Boolean {
    val golden = Golden(context.assets)
    val model = CompiledModel.create(context.assets, "model.tflite", CompiledModel.Options(Accelerator.CPU), null)
    val inputs = model.createInputBuffers()
    val outputs = model.createOutputBuffers()
    var within = true
    for (sample in 0 until golden.count) {
        val given = golden.inputs.map { golden.input(sample, it) }
        val rows = if (golden.byRow) given.first().shape[0].toInt() else 1
        val found = List(outputs.size) { ArrayList<Float>() }
        for (row in 0 until rows) {
            given.forEachIndexed { i, tensor -> write(inputs[i], if (golden.byRow) tensor.row(row) else tensor) }
            model.run(inputs, outputs)
            golden.outputs.forEachIndexed { i, name ->
                if (golden.output(sample, name).type == "<f4") found[i].addAll(outputs[i].readFloat().asList())
            }
        }
        golden.outputs.forEachIndexed { i, name ->
            val wanted = golden.output(sample, name)
            if (wanted.type == "<f4") {
                val off = golden.deviation(wanted.floats(), found[i].toFloatArray())
                Log.i(TAG, "sample $sample, $name: off by $off of the largest value, tolerance ${golden.tolerance}")
                within = within && off <= golden.tolerance
            }
        }
    }
    val times = List(RUNS) { timed { model.run(inputs, outputs) } }.sorted()
    Log.i(TAG, "n=$RUNS: median ${times[RUNS / 2]} ms, 90 % within ${times[RUNS * 9 / 10]} ms")
    (inputs + outputs).forEach { it.close() }
    model.close()
    return within
}

private fun write(buffer: TensorBuffer, tensor: Tensor) = when (tensor.type) {
    "<f4" -> buffer.writeFloat(tensor.floats())
    "<i4" -> buffer.writeInt(tensor.ints())
    "<i8" -> buffer.writeLong(tensor.longs())
    else -> throw IllegalArgumentException("an input of ${tensor.type}: add it here")
}

private fun timed(run: () -> Unit): Double {
    val started = System.nanoTime()
    run()
    return (System.nanoTime() - started) / 1e6
}
