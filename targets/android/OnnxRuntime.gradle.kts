// What app/build.gradle.kts has to say for OnnxRuntimeSample.kt, beside what it says already.

android {
    defaultConfig { minSdk = 24 }
    androidResources { noCompress += "ort" }
}

dependencies {
    implementation("com.microsoft.onnxruntime:onnxruntime-android:1.31.0")
}
