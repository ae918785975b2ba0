// What app/build.gradle.kts has to say for LiteRtSample.kt, beside what it says already.

android {
    defaultConfig { minSdk = 24 }
    androidResources { noCompress += "tflite" } // so that the model is mapped, and not copied
}

dependencies {
    implementation("com.google.ai.edge.litert:litert:2.3.0")
}
