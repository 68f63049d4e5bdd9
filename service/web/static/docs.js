"use strict";
SwaggerUIBundle({ url: "/openapi.json", dom_id: "#docs", layout: "BaseLayout", deepLinking: true });
