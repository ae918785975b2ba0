// The golden samples of a build: inputs, reference outputs, and how far an output may be from its reference.
// Lay manifest.json and golden.npz of the build into app/src/main/assets, beside the model.

package polycast

import android.content.res.AssetManager
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.util.zip.ZipInputStream
import kotlin.math.abs
import org.json.JSONArray
import org.json.JSONObject

/** Elements of one type, as NumPy spells it ("<f4", "<i8"), in little-endian [bytes]. */
class Tensor(val type: String, val shape: LongArray, val bytes: ByteBuffer) {
    fun floats() = FloatArray(bytes.remaining() / 4).also { bytes.duplicate().order(ByteOrder.LITTLE_ENDIAN).asFloatBuffer().get(it) }

    fun ints() = IntArray(bytes.remaining() / 4).also { bytes.duplicate().order(ByteOrder.LITTLE_ENDIAN).asIntBuffer().get(it) }

    fun longs() = LongArray(bytes.remaining() / 8).also { bytes.duplicate().order(ByteOrder.LITTLE_ENDIAN).asLongBuffer().get(it) }

    fun array() = ByteArray(bytes.remaining()).also { bytes.duplicate().get(it) }

    /** Row [index] of a batch, for a model that was made for one row. */
    fun row(index: Int): Tensor {
        val size = bytes.remaining() / shape[0].toInt()
        val part = bytes.duplicate().apply { position(bytes.position() + index * size); limit(position() + size) }.slice()
        return Tensor(type, longArrayOf(1) + shape.drop(1), part)
    }
}

class Golden(assets: AssetManager) {
    private val manifest = JSONObject(assets.open("manifest.json").bufferedReader().readText())
    private val arrays = HashMap<String, Tensor>()

    val count: Int = manifest.getJSONObject("golden").getInt("n")
    val tolerance: Double = manifest.getJSONObject("golden").getDouble("tolerance")

    /** Whether the model takes one row, and a batch goes row by row. */
    val byRow: Boolean = manifest.getJSONObject("runtime").optBoolean("by_row")
    val inputs = names(manifest.getJSONObject("signature").getJSONArray("inputs"))
    val outputs = names(manifest.getJSONObject("signature").getJSONArray("outputs"))

    init {
        ZipInputStream(assets.open("golden.npz").buffered()).use { zip ->
            generateSequence { zip.nextEntry }.forEach { arrays[it.name.removeSuffix(".npy")] = read(zip.readBytes()) }
        }
    }

    fun input(sample: Int, name: String): Tensor = arrays.getValue("$sample/input/$name")

    fun output(sample: Int, name: String): Tensor = arrays.getValue("$sample/output/$name")

    /** Whether there is anything to compare: a build that ran nowhere has no golden samples. */
    val isThere: Boolean get() = count > 0 && outputs.isNotEmpty()

    /**
     * How far [found], little-endian elements, is from [wanted]: of floats the largest deviation as a share of the
     * largest wanted value, of integers and booleans the share that differs.
     */
    fun deviation(wanted: Tensor, found: ByteArray): Double {
        if (wanted.bytes.remaining() != found.size) return Double.POSITIVE_INFINITY
        if (wanted.type == "<f4") return gap(wanted.floats(), Tensor(wanted.type, wanted.shape, ByteBuffer.wrap(found)).floats())
        require(wanted.type[1] in "biu") { "an output of ${wanted.type}: add it here" }
        val size = wanted.type.drop(2).toInt()
        val alike = wanted.array().toList().chunked(size).zip(found.toList().chunked(size)) { want, got -> want == got }
        return if (alike.isEmpty()) 0.0 else alike.count { !it }.toDouble() / alike.size
    }

    private fun gap(wanted: FloatArray, found: FloatArray): Double {
        var largest = 0.0
        var gap = 0.0
        for ((want, got) in wanted.zip(found)) {
            if (want.isFinite() && got.isFinite()) {
                largest = maxOf(largest, abs(want.toDouble()))
                gap = maxOf(gap, abs(got.toDouble() - want))
            } else if (want != got && !(want.isNaN() && got.isNaN())) return Double.POSITIVE_INFINITY
        }
        return if (largest > 0) gap / largest else gap
    }

    private fun names(ports: JSONArray) = List(ports.length()) { ports.getJSONObject(it).getString("name") }

    /** NumPy's .npy: a magic word, the length of a header, the header, the elements. */
    private fun read(file: ByteArray): Tensor {
        val little = ByteBuffer.wrap(file).order(ByteOrder.LITTLE_ENDIAN)
        val (start, length) = if (file[6].toInt() == 1) 10 to little.getShort(8).toInt() else 12 to little.getInt(8)
        val header = String(file, start, length, Charsets.ISO_8859_1)
        val type = Regex("'descr': '([^']*)'").find(header)!!.groupValues[1]
        val dims = Regex("'shape': \\(([^)]*)\\)").find(header)!!.groupValues[1]
        val shape = dims.split(",").map { it.trim() }.filter { it.isNotEmpty() }.map { it.toLong() }.toLongArray()
        return Tensor(type, shape, ByteBuffer.wrap(file, start + length, file.size - start - length).slice())
    }
}
