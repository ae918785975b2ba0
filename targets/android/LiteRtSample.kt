// Runs the golden samples of a build with LiteRT, and logs how near they come and how long a run takes.
//
// LiteRt.gradle.kts beside this file says what app/build.gradle.kts needs. app/src/main/assets: model.tflite, manifest.json, golden.npz

package polycast

import android.content.Context
import android.util.Log
import com.google.ai.edge.litert.Accelerator
import com.google.ai.edge.litert.CompiledModel
import com.google.ai.edge.litert.TensorBuffer
import java.io.ByteArrayOutputStream
import java.nio.ByteBuffer
import java.nio.ByteOrder

private const val TAG = "polycast"
private const val RUNS = 50

/** Whether every output is within the tolerance of the build, and there was one. */
fun runGolden(context: Context): Boolean {
    val golden = Golden(context.assets)
    val model = CompiledModel.create(context.assets, "model.tflite", CompiledModel.Options(Accelerator.CPU), null)
    val inputs = model.createInputBuffers()
    val outputs = model.createOutputBuffers()
    var within = golden.isThere
    for (sample in 0 until golden.count) {
        val given = golden.inputs.map { golden.input(sample, it) }
        val rows = if (golden.byRow) given.first().shape[0].toInt() else 1
        val found = golden.outputs.map { ByteArrayOutputStream() }
        for (row in 0 until rows) {
            given.forEachIndexed { i, tensor -> write(inputs[i], if (golden.byRow) tensor.row(row) else tensor) }
            model.run(inputs, outputs)
            golden.outputs.forEachIndexed { i, name -> found[i].write(read(outputs[i], golden.output(sample, name).type)) }
        }
        golden.outputs.forEachIndexed { i, name ->
            val off = golden.deviation(golden.output(sample, name), found[i].toByteArray())
            Log.i(TAG, "sample $sample, $name: off by $off, tolerance ${golden.tolerance}")
            within = within && off <= golden.tolerance
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
    "|b1" -> buffer.writeBoolean(tensor.array().map { it != 0.toByte() }.toBooleanArray())
    "|i1", "|u1" -> buffer.writeInt8(tensor.array())
    else -> throw IllegalArgumentException("an input of ${tensor.type}: add it here")
}

private fun read(buffer: TensorBuffer, type: String): ByteArray = when (type) {
    "<f4" -> buffer.readFloat().let { found -> littleEndian(4 * found.size) { it.asFloatBuffer().put(found) } }
    "<i4" -> buffer.readInt().let { found -> littleEndian(4 * found.size) { it.asIntBuffer().put(found) } }
    "<i8" -> buffer.readLong().let { found -> littleEndian(8 * found.size) { it.asLongBuffer().put(found) } }
    "|b1" -> buffer.readBoolean().map { if (it) 1.toByte() else 0 }.toByteArray()
    "|i1", "|u1" -> buffer.readInt8()
    else -> throw IllegalArgumentException("an output of $type: add it here")
}

private fun littleEndian(size: Int, fill: (ByteBuffer) -> Unit) =
    ByteBuffer.allocate(size).order(ByteOrder.LITTLE_ENDIAN).also(fill).array()

private fun timed(run: () -> Unit): Double {
    val started = System.nanoTime()
    run()
    return (System.nanoTime() - started) / 1e6
}
